#include "instantiate.cuh"

namespace stdetr {

template void forward_of<__nv_bfloat16>(Problem&, const Device&, Stream);
template void backward_of<__nv_bfloat16>(Problem&, bool, const Device&, Stream);

}  // namespace stdetr
