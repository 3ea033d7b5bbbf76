"""A multi-layer RNN over a batch of sequences: where torch.nn.RNN stood, rnn_ext.RNN does."""

import torch

import rnn_ext

torch.manual_seed(0)

# 10 time steps, 3 sequences, 100 features each: (T, B, features), as in torch.nn.
x = torch.randn(10, 3, 100)

rnn = rnn_ext.RNN(input_size=100, hidden_size=64, num_layers=2, nonlinearity="tanh")

# The states before the first step, one for each layer; zeros if left out.
h_0 = torch.zeros(2, 3, 64)
output, h_n = rnn(x, h_0)
print("output", tuple(output.shape))  # the last layer's state at every step
print("h_n   ", tuple(h_n.shape))  # every layer's state after the last step

# Gradients go through all steps and layers. `from_torch` turns the RNNs of a model that you have into these.
output.square().mean().backward()
print("gradient of weight_hh_l0", tuple(rnn.weight_hh_l0.grad.shape))
