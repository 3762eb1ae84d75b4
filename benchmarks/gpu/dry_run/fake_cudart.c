/* A CUDA runtime, and cuBLAS, that compute nothing and count: preloaded, they stand in for a GPU.
 *
 * ggml's CUDA backend then does all that it does on the host: it chooses kernels, fuses, allocates, captures and launches
 * graphs, and aborts on what it does not support. Memory is the host's. What kernels would write is not written, so no
 * result means anything. Which kernels, how many, and how many bytes, does. One thread computes at a time.
 * DRY_CUDA_BYTES is the memory of the card, DRY_CUDA_CAPABILITY its compute capability ("90"; ggml must be compiled for it).
 *
 * `count.py` builds and reads it.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PUBLIC __attribute__((visibility("default")))

enum { MAX_KERNELS = 1 << 16, MAX_BLOCKS = 1 << 16 };

static struct kernel { const void *function; const char *name; long direct, captured; } kernels[MAX_KERNELS];
static int kernel_count;
static struct block { void *address; size_t size; } blocks[MAX_BLOCKS];
static size_t used_bytes;
static long copies, captured_copies, host_copies, captures, graph_launches, graph_nodes, synchronisations;
static int capturing;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The device. Source: NVIDIA H100 SXM5 data sheet, CUDA's table of compute capabilities. */
static size_t total_bytes(void) {
    const char *given = getenv("DRY_CUDA_BYTES");
    return given ? strtoull(given, NULL, 10) : 80ull << 30;
}

PUBLIC cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
PUBLIC cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
PUBLIC cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
PUBLIC cudaError_t cudaSetDeviceFlags(unsigned flags) { (void)flags; return cudaSuccess; }
PUBLIC cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    const char *capability = getenv("DRY_CUDA_CAPABILITY");
    int cc = capability ? atoi(capability) : 90;
    (void)device;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "dry run, compute capability %d.%d", cc / 10, cc % 10);
    p->totalGlobalMem = total_bytes();
    p->major = cc / 10;
    p->minor = cc % 10;
    p->multiProcessorCount = 132;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = cc == 80 ? 163 << 10 : cc < 90 ? 99 << 10 : 227 << 10;
    p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + (1 << 10);
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->l2CacheSize = 50 << 20;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, device);
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrCooperativeLaunch: *value = 1; break;
        case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
PUBLIC cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    (void)device;
    snprintf(id, (size_t)length, "0000:00:00.0");
    return cudaSuccess;
}
PUBLIC cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { (void)a; (void)b; *can = 0; return cudaSuccess; }
PUBLIC cudaError_t cudaDeviceEnablePeerAccess(int d, unsigned f) { (void)d; (void)f; return cudaSuccess; }
PUBLIC cudaError_t cudaDeviceSynchronize(void) { synchronisations++; return cudaSuccess; }
PUBLIC cudaError_t cudaGetLastError(void) { return cudaSuccess; }
PUBLIC cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
PUBLIC const char *cudaGetErrorString(cudaError_t e) { (void)e; return "an error in a dry run"; }
PUBLIC const char *cudaGetErrorName(cudaError_t e) { (void)e; return "dry run"; }

/* Memory. */
static cudaError_t take(void **address, size_t size) {
    cudaError_t result = cudaErrorMemoryAllocation;
    pthread_mutex_lock(&lock);
    if (used_bytes + size <= total_bytes()) {
        for (int i = 0; i < MAX_BLOCKS; i++) {
            if (blocks[i].address) continue;
            if (posix_memalign(address, 256, size ? size : 1)) break;
            blocks[i] = (struct block){*address, size};
            used_bytes += size;
            result = cudaSuccess;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}
PUBLIC cudaError_t cudaMalloc(void **address, size_t size) {
    /* Illegal while a stream is being captured: on a GPU it would end the capture with an error. */
    if (capturing) { fprintf(stderr, "dry run: cudaMalloc during a capture\n"); abort(); }
    return take(address, size);
}
PUBLIC cudaError_t cudaMallocManaged(void **address, size_t size, unsigned flags) { (void)flags; return take(address, size); }
PUBLIC cudaError_t cudaFree(void *address) {
    pthread_mutex_lock(&lock);
    for (int i = 0; address && i < MAX_BLOCKS; i++) {
        if (blocks[i].address != address) continue;
        used_bytes -= blocks[i].size;
        blocks[i].address = NULL;
        free(address);
        break;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = total_bytes();
    *free_bytes = *total - used_bytes;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaMallocHost(void **address, size_t size) {
    return posix_memalign(address, 4096, size ? size : 1) ? cudaErrorMemoryAllocation : cudaSuccess;
}
PUBLIC cudaError_t cudaHostAlloc(void **a, size_t size, unsigned flags) { (void)flags; return cudaMallocHost(a, size); }
PUBLIC cudaError_t cudaFreeHost(void *address) { free(address); return cudaSuccess; }
PUBLIC cudaError_t cudaHostRegister(void *a, size_t s, unsigned f) { (void)a; (void)s; (void)f; return cudaSuccess; }
PUBLIC cudaError_t cudaHostUnregister(void *a) { (void)a; return cudaSuccess; }
PUBLIC cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned f) { (void)f; *d = h; return cudaSuccess; }
#if CUDART_VERSION >= 13000
PUBLIC cudaError_t cudaMemAdvise(const void *a, size_t s, enum cudaMemoryAdvise v, struct cudaMemLocation l) {
#else
PUBLIC cudaError_t cudaMemAdvise(const void *a, size_t s, enum cudaMemoryAdvise v, int l) {
#endif
    (void)a; (void)s; (void)v; (void)l; return cudaSuccess;
}
static void count_copy(enum cudaMemcpyKind kind) {
    if (kind != cudaMemcpyDeviceToDevice) host_copies++;
    else if (capturing) captured_copies++;
    else copies++;
}
PUBLIC cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
    (void)s;
    count_copy(kind);
    memmove(to, from, size);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, size, kind, NULL);
}
PUBLIC cudaError_t cudaMemcpy2DAsync(
    void *to, size_t to_pitch, const void *from, size_t pitch, size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t s) {
    (void)s;
    count_copy(kind);
    for (size_t row = 0; row < height; row++) memmove((char *)to + row * to_pitch, (const char *)from + row * pitch, width);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t size, cudaStream_t s) {
    (void)a; (void)b;
    return cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, s);
}
PUBLIC cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t s) {
    (void)s;
    count_copy(cudaMemcpyDeviceToDevice);
    memset(to, value, size);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaMemset(void *to, int value, size_t size) { return cudaMemsetAsync(to, value, size, NULL); }

/* Kernels. */
static cudaError_t launched(const void *function) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < kernel_count; i++) {
        if (kernels[i].function != function) continue;
        if (capturing) kernels[i].captured++; else kernels[i].direct++;
        break;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    (void)g; (void)b; (void)a; (void)m; (void)s;
    return launched(f);
}
PUBLIC cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    (void)g; (void)b; (void)a; (void)m; (void)s;
    return launched((const void *)f);
}
PUBLIC cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
    (void)c; (void)a;
    return launched(f);
}
PUBLIC cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
    (void)g; (void)b; (void)a; (void)m; (void)s;
    return launched(f);
}
PUBLIC cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) {
    (void)s;
    f(data);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) {
    (void)f; (void)a; (void)v;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *f) {
    (void)f;
    memset(attributes, 0, sizeof *attributes);
    attributes->binaryVersion = attributes->ptxVersion = 90;
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 64;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *blocks_per_sm, const void *f, int size, size_t memory, unsigned flags) {
    (void)f; (void)size; (void)memory; (void)flags;
    *blocks_per_sm = 2;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int size, size_t memory) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, size, memory, 0);
}
PUBLIC cudaError_t cudaGetKernel(cudaKernel_t *kernel, const void *f) { *kernel = (cudaKernel_t)f; return cudaSuccess; }
PUBLIC cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *f) { return cudaGetKernel(kernel, f); }
static void *module;
PUBLIC void **__cudaRegisterFatBinary(void *binary) { (void)binary; return &module; }
PUBLIC void __cudaRegisterFatBinaryEnd(void **m) { (void)m; }
PUBLIC void __cudaUnregisterFatBinary(void **m) { (void)m; }
PUBLIC char __cudaInitModule(void **m) { (void)m; return 1; }
PUBLIC void __cudaRegisterVar(void **m, char *h, char *a, const char *n, int e, size_t s, int c, int g) {
    (void)m; (void)h; (void)a; (void)n; (void)e; (void)s; (void)c; (void)g;
}
PUBLIC void __cudaRegisterFunction(
    void **m, const char *function, char *device_function, const char *name, int limit, void *t, void *b, void *bd, void *gd,
    int *w) {
    (void)m; (void)device_function; (void)limit; (void)t; (void)b; (void)bd; (void)gd; (void)w;
    if (kernel_count < MAX_KERNELS) kernels[kernel_count++] = (struct kernel){function, name, 0, 0};
}
static __thread struct { dim3 grid, block; size_t memory; void *stream; } pushed;
PUBLIC unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t memory, struct CUstream_st *stream) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.memory = memory;
    pushed.stream = stream;
    return 0;
}
PUBLIC cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *memory, void *stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *memory = pushed.memory;
    *(void **)stream = pushed.stream;
    return cudaSuccess;
}

/* Streams, events, graphs: handles that are never looked into. */
static void *handle(void) { return malloc(16); }
PUBLIC cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { (void)f; *s = handle(); return cudaSuccess; }
PUBLIC cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
PUBLIC cudaError_t cudaStreamSynchronize(cudaStream_t s) { (void)s; synchronisations++; return cudaSuccess; }
PUBLIC cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { (void)s; (void)e; (void)f; return cudaSuccess; }
PUBLIC cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    (void)s;
    *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
    (void)s; (void)m;
    capturing = 1;
    captured_copies = 0;
    for (int i = 0; i < kernel_count; i++) kernels[i].captured = 0;
    return cudaSuccess;
}
PUBLIC cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) {
    (void)s;
    capturing = 0;
    captures++;
    graph_nodes = 0;
    for (int i = 0; i < kernel_count; i++) graph_nodes += kernels[i].captured;
    *graph = handle();
    return cudaSuccess;
}
PUBLIC cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
    (void)g; (void)f;
    *e = handle();
    return cudaSuccess;
}
PUBLIC cudaError_t cudaGraphExecUpdate(cudaGraphExec_t e, cudaGraph_t g, cudaGraphExecUpdateResultInfo *r) {
    (void)e; (void)g;
    memset(r, 0, sizeof *r);
    return cudaSuccess;
}
PUBLIC cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { (void)e; (void)s; graph_launches++; return cudaSuccess; }
PUBLIC cudaError_t cudaGraphDestroy(cudaGraph_t g) { free(g); return cudaSuccess; }
PUBLIC cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { free(e); return cudaSuccess; }
PUBLIC cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { (void)f; *e = handle(); return cudaSuccess; }
PUBLIC cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
PUBLIC cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { (void)e; (void)s; return cudaSuccess; }
PUBLIC cudaError_t cudaEventSynchronize(cudaEvent_t e) { (void)e; return cudaSuccess; }

/* cuBLAS: a call is a kernel. Its arguments are not looked at, so its header is not needed. */
static struct kernel *cublas_kernel(void) {
    for (int i = 0; i < kernel_count; i++)
        if (kernels[i].function == (const void *)cublas_kernel) return &kernels[i];
    kernels[kernel_count] = (struct kernel){(const void *)cublas_kernel, "cublas", 0, 0};
    return &kernels[kernel_count++];
}
#define CUBLAS_CALL(name) \
    PUBLIC int name(void) { cublas_kernel(); launched((const void *)cublas_kernel); return 0; }
CUBLAS_CALL(cublasGemmEx)
CUBLAS_CALL(cublasGemmBatchedEx)
CUBLAS_CALL(cublasGemmStridedBatchedEx)
CUBLAS_CALL(cublasSgemm_v2)
CUBLAS_CALL(cublasSgemmBatched)
CUBLAS_CALL(cublasSgemmStridedBatched)
CUBLAS_CALL(cublasStrsmBatched)
PUBLIC int cublasCreate_v2(void **h) { *h = handle(); return 0; }
PUBLIC int cublasDestroy_v2(void *h) { free(h); return 0; }
PUBLIC int cublasSetMathMode(void *h, int m) { (void)h; (void)m; return 0; }
PUBLIC int cublasSetStream_v2(void *h, void *s) { (void)h; (void)s; return 0; }
PUBLIC int cublasSetWorkspace_v2(void *h, void *w, size_t s) { (void)h; (void)w; (void)s; return 0; }
PUBLIC const char *cublasGetStatusString(int s) { (void)s; return "an error in a dry run"; }

/* The driver's own interface, of which ggml only asks whether memory can be mapped: it cannot. */
PUBLIC int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
PUBLIC int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)attribute; (void)device; *value = 0; return 0; }
PUBLIC int cuGetErrorString(int e, const char **text) { (void)e; *text = "an error in a dry run"; return 0; }
#define NEVER_CALLED(name) PUBLIC int name(void) { fprintf(stderr, "dry run: " #name " is not there\n"); abort(); }
NEVER_CALLED(cuMemAddressFree)
NEVER_CALLED(cuMemAddressReserve)
NEVER_CALLED(cuMemCreate)
NEVER_CALLED(cuMemGetAllocationGranularity)
NEVER_CALLED(cuMemMap)
NEVER_CALLED(cuMemRelease)
NEVER_CALLED(cuMemSetAccess)
NEVER_CALLED(cuMemUnmap)

/* What was counted. */
PUBLIC void fake_cudart_reset(void) {
    for (int i = 0; i < kernel_count; i++) kernels[i].direct = 0;
    copies = host_copies = captures = graph_launches = synchronisations = 0;
}
PUBLIC int fake_cudart_write(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) return 1;
    fprintf(file, "{\"used_bytes\": %zu, \"copies\": %ld, \"captured_copies\": %ld, \"host_copies\": %ld, ", used_bytes,
            copies, captured_copies, host_copies);
    fprintf(file, "\"captures\": %ld, \"graph_launches\": %ld, \"graph_nodes\": %ld, \"synchronisations\": %ld, ", captures,
            graph_launches, graph_nodes, synchronisations);
    fprintf(file, "\"kernels\": [");
    const char *separator = "";
    for (int i = 0; i < kernel_count; i++) {
        if (!kernels[i].direct && !kernels[i].captured) continue;
        fprintf(file, "%s[\"%s\", %ld, %ld]", separator, kernels[i].name, kernels[i].direct, kernels[i].captured);
        separator = ", ";
    }
    fprintf(file, "]}\n");
    return fclose(file);
}
