"""The CUDA kernels' own source, compiled with g++ and stepped on the host, so that tests need no GPU."""
