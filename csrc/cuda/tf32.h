// Whether float32 may be multiplied in TF32.
#pragma once

namespace rnn_ext::cuda {

// What PyTorch's switch for its own products says, torch.backends.cuda.matmul.fp32_precision, of which allow_tf32 and
// torch.set_float32_matmul_precision are other names. The stable ABI has no way to ask, but Python has: so this is
// module.cpp's.
bool tf32_is_allowed();

}  // namespace rnn_ext::cuda
