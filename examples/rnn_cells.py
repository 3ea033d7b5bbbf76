"""Two RNN cells stacked by hand, for a loop that does something of its own between steps.

Where nothing happens between steps, rnn_ext.RNN runs all of them in one go and is much faster.
"""

import torch

import rnn_ext

torch.manual_seed(0)

# 8 time steps, 3 sequences, 40 features each: (T, B, features).
x = torch.randn(8, 3, 40)

lower = rnn_ext.RNNCell(input_size=40, hidden_size=32)
upper = rnn_ext.RNNCell(input_size=32, hidden_size=16)  # reads the states of the lower one

h_lower, h_upper = torch.zeros(3, 32), torch.zeros(3, 16)
outputs = []
for x_t in x:
    h_lower = lower(x_t, h_lower)
    h_upper = upper(h_lower, h_upper)
    outputs.append(h_upper)

output = torch.stack(outputs)
print("output ", tuple(output.shape))  # the upper state at every step
print("h_lower", tuple(h_lower.shape))
print("h_upper", tuple(h_upper.shape))
