#include "instantiate.cuh"

namespace stdetr {

template void forward_of<float>(Problem&, const Device&, Stream);
template void backward_of<float>(Problem&, bool, const Device&, Stream);

}  // namespace stdetr
