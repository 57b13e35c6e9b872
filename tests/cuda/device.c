/* A CUDA device that is not there: its memory is host memory, copies are real, kernels are logged and not run.
 *
 * ONNX Runtime and GenAI go through all of their host code on it: loading, placement, checks of shapes, choice of
 * kernels, graph capture. Nothing is computed, so every result is zeros, or what memory held before.
 *
 * Only functions that give something back are written here. stand_in.py adds one for each other symbol that the wheels
 * import, which returns 0 (success in every one of these libraries) and logs its name.
 *
 * DRY_CUDA_LOG         file to append the log to: one line for each kernel, copy, capture and fault
 * DRY_CUDA_CAPABILITY  compute capability, such as 89 (8.9, the default)
 *
 * A line that begins with "fault" is something that a real device would refuse, or would do wrongly without a word.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_runtime_api.h"

#define EXPORT __attribute__((visibility("default")))

enum {
    MULTIPROCESSORS = 72,
    SHARED_PER_BLOCK = 48 << 10,
    SHARED_PER_BLOCK_OPTIN = 99 << 10,
    SHARED_PER_MULTIPROCESSOR = 100 << 10,
    THREADS_PER_BLOCK = 1024,
    THREADS_PER_MULTIPROCESSOR = 1536,
    GRID_X = 2147483647,
    GRID_YZ = 65535,
    L2_BYTES = 48 << 20,
};
static const size_t MEMORY = 24ull << 30, MEMORY_FREE = 20ull << 30;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *log_file;
static int major = 8, minor = 9;
static int capturing;
static cudaError_t last_error;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("DRY_CUDA_LOG"), *capability = getenv("DRY_CUDA_CAPABILITY");
    if (path && (log_file = fopen(path, "a"))) setvbuf(log_file, NULL, _IOLBF, 0);
    if (capability) {
        major = atoi(capability) / 10;
        minor = atoi(capability) % 10;
    }
}

static void note(const char *format, ...) {
    if (!log_file) return;
    va_list values;
    va_start(values, format);
    vfprintf(log_file, format, values);
    va_end(values);
}

/* What the generated functions call. Registrations (__cuda...) come by the ten thousand, and say nothing. */
void note_stub(const char *name) {
    if (name[0] != '_') note("stub %s\n", name);
}

static cudaError_t fail(cudaError_t error, const char *what) {
    note("fault %s\n", what);
    return last_error = error;
}

/* Handles of streams, events and the like: all that matters is that they are not NULL. */
static void *new_handle(void) { return calloc(1, 64); }

/* ---- memory */

typedef struct {
    char *start;
    size_t bytes;
    enum cudaMemoryType kind;
} Block;

static Block *blocks;
static int num_blocks, room_for_blocks;

static void *allocate(size_t bytes, enum cudaMemoryType kind) {
    void *start;
    size_t whole = (bytes + 255) / 256 * 256;
    if (posix_memalign(&start, 256, whole ? whole : 256)) return NULL;
    if (kind == cudaMemoryTypeDevice) memset(start, 0, whole); /* so that no run depends on what lay there */
    pthread_mutex_lock(&lock);
    if (num_blocks == room_for_blocks) {
        room_for_blocks = room_for_blocks ? 2 * room_for_blocks : 1024;
        blocks = realloc(blocks, room_for_blocks * sizeof(Block));
    }
    blocks[num_blocks++] = (Block){start, bytes, kind};
    pthread_mutex_unlock(&lock);
    return start;
}

static void release(void *start) {
    pthread_mutex_lock(&lock);
    for (int i = num_blocks - 1; i >= 0; i--)
        if (blocks[i].start == start) {
            blocks[i] = blocks[--num_blocks];
            free(start);
            break;
        }
    pthread_mutex_unlock(&lock);
}

/* The block that an address lies in; its size is 0 where CUDA knows nothing of the address. */
static Block block_of(const void *address) {
    Block found = {NULL, 0, cudaMemoryTypeUnregistered};
    pthread_mutex_lock(&lock);
    for (int i = num_blocks - 1; i >= 0; i--)
        if ((char *)address >= blocks[i].start && (char *)address < blocks[i].start + blocks[i].bytes) {
            found = blocks[i];
            break;
        }
    pthread_mutex_unlock(&lock);
    return found;
}

static int beyond(Block block, const void *address, size_t bytes) {
    return block.bytes && (char *)address + bytes > block.start + block.bytes;
}

static cudaError_t give(void **start, size_t bytes, enum cudaMemoryType kind) {
    *start = allocate(bytes, kind);
    return *start ? cudaSuccess : (last_error = cudaErrorMemoryAllocation);
}

#define NOT_WHILE_CAPTURING \
    if (capturing) return fail(cudaErrorStreamCaptureUnsupported, __func__)

EXPORT cudaError_t cudaMalloc(void **start, size_t bytes) {
    NOT_WHILE_CAPTURING;
    return give(start, bytes, cudaMemoryTypeDevice);
}
EXPORT cudaError_t cudaMallocAsync(void **start, size_t bytes, cudaStream_t stream) {
    return give(start, bytes, cudaMemoryTypeDevice);
}
EXPORT cudaError_t cudaMallocFromPoolAsync(void **start, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
    return give(start, bytes, cudaMemoryTypeDevice);
}
EXPORT cudaError_t cudaMallocHost(void **start, size_t bytes) { return give(start, bytes, cudaMemoryTypeHost); }
EXPORT cudaError_t cudaHostAlloc(void **start, size_t bytes, unsigned flags) {
    return give(start, bytes, cudaMemoryTypeHost);
}
EXPORT cudaError_t cudaFree(void *start) {
    if (start) NOT_WHILE_CAPTURING;
    release(start);
    return cudaSuccess;
}
EXPORT cudaError_t cudaFreeAsync(void *start, cudaStream_t stream) {
    release(start);
    return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void *start) {
    release(start);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
    *unused = MEMORY_FREE;
    *total = MEMORY;
    return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
    memset(attributes, 0, sizeof *attributes);
    Block block = block_of(address);
    attributes->type = block.kind;
    if (block.bytes) attributes->devicePointer = attributes->hostPointer = (void *)address;
    return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    static const char *const kinds[] = {"host to host", "host to device", "device to host", "device to device", "any"};
    Block target = block_of(to), source = block_of(from);
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    note("copy %zu bytes %s\n", bytes, kinds[kind]);
    if (!bytes) return cudaSuccess;
    if (beyond(target, to, bytes) || beyond(source, from, bytes))
        return fail(cudaErrorInvalidValue, "a copy reaches beyond its memory");
    if ((to_device && !target.bytes) || (from_device && !source.bytes))
        return fail(cudaErrorInvalidValue, "a copy takes host memory for the device's");
    memmove(to, from, bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    NOT_WHILE_CAPTURING;
    return copy(to, from, bytes, kind);
}
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream) {
    return copy(to, from, bytes, kind);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    cudaError_t error = cudaSuccess;
    for (size_t row = 0; row < height && !error; row++)
        error = copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind);
    return error;
}
/* A symbol is a variable of the device's program, which does not exist here. */
EXPORT cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset,
                                        enum cudaMemcpyKind kind) {
    memset(to, 0, bytes);
    return cudaSuccess;
}
static cudaError_t set(void *start, int value, size_t bytes) {
    if (beyond(block_of(start), start, bytes)) return fail(cudaErrorInvalidValue, "a fill reaches beyond its memory");
    memset(start, value, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *start, int value, size_t bytes) { return set(start, value, bytes); }
EXPORT cudaError_t cudaMemsetAsync(void *start, int value, size_t bytes, cudaStream_t stream) {
    return set(start, value, bytes);
}
EXPORT cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
    *pool = new_handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
    *(uint64_t *)value = 0;
    return cudaSuccess;
}

/* ---- device, versions, errors */

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
    return device ? fail(cudaErrorInvalidDevice, "there is no such device") : cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSynchronize(void) {
    NOT_WHILE_CAPTURING;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *device, int index) {
    *device = (struct cudaDeviceProp){
        .name = "dry run",
        .major = major,
        .minor = minor,
        .totalGlobalMem = MEMORY,
        .sharedMemPerBlock = SHARED_PER_BLOCK,
        .sharedMemPerBlockOptin = SHARED_PER_BLOCK_OPTIN,
        .sharedMemPerMultiprocessor = SHARED_PER_MULTIPROCESSOR,
        .reservedSharedMemPerBlock = 1024,
        .regsPerBlock = 65536,
        .regsPerMultiprocessor = 65536,
        .warpSize = 32,
        .maxThreadsPerBlock = THREADS_PER_BLOCK,
        .maxThreadsPerMultiProcessor = THREADS_PER_MULTIPROCESSOR,
        .maxBlocksPerMultiProcessor = 24,
        .maxThreadsDim = {1024, 1024, 64},
        .maxGridSize = {GRID_X, GRID_YZ, GRID_YZ},
        .multiProcessorCount = MULTIPROCESSORS,
        .l2CacheSize = L2_BYTES,
        .memoryBusWidth = 384,
        .asyncEngineCount = 2,
        .concurrentKernels = 1,
        .unifiedAddressing = 1,
        .cooperativeLaunch = 1,
        .canMapHostMemory = 1,
    };
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = minor; break;
        case cudaDevAttrMultiProcessorCount: *value = MULTIPROCESSORS; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = SHARED_PER_BLOCK; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = SHARED_PER_BLOCK_OPTIN; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = SHARED_PER_MULTIPROCESSOR; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = THREADS_PER_BLOCK; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = THREADS_PER_MULTIPROCESSOR; break;
        case cudaDevAttrMaxGridDimX: *value = GRID_X; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = GRID_YZ; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrL2CacheSize: *value = L2_BYTES; break;
        case cudaDevAttrCooperativeLaunch:
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
EXPORT const char *cudaGetErrorName(cudaError_t error) { return error ? "cudaErrorOfTheDryRun" : "cudaSuccess"; }
EXPORT const char *cudaGetErrorString(cudaError_t error) {
    static __thread char text[48];
    snprintf(text, sizeof text, "CUDA error %d of the dry run", error);
    return text;
}
EXPORT cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }

/* ---- streams, events, graphs */

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = new_handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    NOT_WHILE_CAPTURING;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new_handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return cudaEventCreate(event); }
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = 1;
    note("capture begins\n");
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = 0;
    *graph = new_handle();
    note("capture ends\n");
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
    *executable = new_handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    note("replay\n");
    return cudaSuccess;
}

/* ---- kernels: the loader of each library registers them by name, and launches name them by address */

typedef struct {
    const void *function;
    const char *name;
} Kernel;

static Kernel *kernels;
static int num_kernels, room_for_kernels, kernels_sorted;

EXPORT void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}
EXPORT void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name,
                                   int limit, void *thread, void *block, void *block_size, void *grid_size, int *warp) {
    pthread_mutex_lock(&lock);
    if (num_kernels == room_for_kernels) {
        room_for_kernels = room_for_kernels ? 2 * room_for_kernels : 4096;
        kernels = realloc(kernels, room_for_kernels * sizeof(Kernel));
    }
    kernels[num_kernels++] = (Kernel){function, strdup(name)};
    kernels_sorted = 0;
    pthread_mutex_unlock(&lock);
}

static int by_address(const void *left, const void *right) {
    const void *a = ((const Kernel *)left)->function, *b = ((const Kernel *)right)->function;
    return (a > b) - (a < b);
}

static const char *name_of(const void *function) {
    Kernel wanted = {function, NULL}, *found;
    pthread_mutex_lock(&lock);
    if (!kernels_sorted) qsort(kernels, num_kernels, sizeof(Kernel), by_address);
    kernels_sorted = 1;
    found = bsearch(&wanted, kernels, num_kernels, sizeof(Kernel), by_address);
    pthread_mutex_unlock(&lock);
    return found ? found->name : NULL;
}

static cudaError_t launch(const void *function, dim3 grid, dim3 block) {
    const char *name = name_of(function);
    note("kernel %s %u,%u,%u %u,%u,%u\n", name ? name : "?", grid.x, grid.y, grid.z, block.x, block.y, block.z);
    if (!name) return fail(cudaErrorInvalidDeviceFunction, "a kernel was never registered");
    if (!grid.x || !grid.y || !grid.z || grid.y > GRID_YZ || grid.z > GRID_YZ)
        return fail(cudaErrorInvalidConfiguration, "a grid is empty or too large");
    if (!block.x || !block.y || !block.z || (size_t)block.x * block.y * block.z > THREADS_PER_BLOCK)
        return fail(cudaErrorInvalidConfiguration, "a block is empty or too large");
    return cudaSuccess;
}

/* kernel<<<...>>> in the wheels' code compiles to a push of its configuration, a pop, and a launch. */
static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} pushed;

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = (cudaKernel_t)function;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                                      cudaStream_t stream) {
    return launch((const void *)kernel, grid, block);
}
EXPORT cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared,
                                    cudaStream_t stream) {
    return launch(function, grid, block);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                               size_t shared, cudaStream_t stream) {
    return launch(function, grid, block);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    return launch(function, config->gridDim, config->blockDim);
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    *attributes = (struct cudaFuncAttributes){
        .maxThreadsPerBlock = THREADS_PER_BLOCK,
        .numRegs = 64,
        .binaryVersion = 10 * major + minor,
        .ptxVersion = 10 * major + minor,
        .maxDynamicSharedSizeBytes = SHARED_PER_BLOCK_OPTIN,
    };
    return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize && value > SHARED_PER_BLOCK_OPTIN)
        return fail(cudaErrorInvalidValue, "a kernel wants more shared memory than a block has");
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *count, const void *function, int threads,
                                                                 size_t shared) {
    *count = 2;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *function,
                                                                          int threads, size_t shared, unsigned flags) {
    *count = 2;
    return cudaSuccess;
}
#if CUDART_VERSION >= 13000
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *options,
                                       void **values, unsigned count, enum cudaLibraryOption *library_options,
                                       void **library_values, unsigned library_count) {
    *library = new_handle();
    return cudaSuccess;
}
EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
    *kernel = new_handle();
    return cudaSuccess;
}
/* Functions of the driver that ONNX Runtime looks up by name (cuTensorMapEncodeTiled) succeed. */
static int driver_function(void) { return 0; }
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *result) {
    *function = (void *)driver_function;
    if (result) *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
#endif

/* ---- cuBLAS, cuBLASLt, cuDNN: a status of 0 is success, and handles come back through the first argument.
 * Declared here instead of included, since the headers come with half a gigabyte of libraries. */

#define CREATES(name) \
    EXPORT int name(void **handle) { \
        *handle = new_handle(); \
        return 0; \
    }
CREATES(cublasCreate_v2)
CREATES(cublasLtCreate)
CREATES(cublasLtMatmulDescCreate)
CREATES(cublasLtMatmulPreferenceCreate)
CREATES(cublasLtMatrixLayoutCreate)
CREATES(cublasLtMatrixTransformDescCreate)
CREATES(cudnnCreate)

EXPORT int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}
EXPORT const char *cublasGetStatusName(int status) { return "a status of the dry run"; }
EXPORT const char *cublasGetStatusString(int status) { return "a status of the dry run"; }
EXPORT size_t cudnnGetVersion(void) { return 91000; }
EXPORT const char *cudnnGetErrorString(int status) { return "a status of the dry run"; }

/* cublasLtMatmulHeuristicResult_t: https://docs.nvidia.com/cuda/cublas/#cublasltmatmulheuristicresult-t */
typedef struct {
    uint64_t algorithm[8];
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} Heuristic;

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                          void *preference, int wanted, Heuristic *results, int *found) {
    memset(results, 0, sizeof *results);
    *found = 1;
    return 0;
}
