#include "instantiate.cuh"

namespace stdetr {

template void forward_of<__half>(Problem&, const Device&, Stream);
template void backward_of<__half>(Problem&, bool, const Device&, Stream);

}  // namespace stdetr
