/* CUDA's headers ask the compiler package for these markers; a C compiler needs them to be nothing. */
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define CUDARTAPI
#define CUDARTAPI_CDECL
