#include "instantiate.cuh"

namespace stdetr {

template void forward_of<double>(Problem&, const Device&, Stream);
template void backward_of<double>(Problem&, bool, const Device&, Stream);

}  // namespace stdetr
