/* A CUDA driver without a device: it says yes to everything, computes nothing, and writes to the
 * file FAKE_CUDA_LOG what it is asked to launch, on which stream, and for what it is asked to wait.
 * The folder FAKE_CUDA_PTX gets the code of each module. So Taichi's compiler for GPUs is tested
 * where there is none. "Device" memory is the host's. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Any;
#define YES return 0

static void say(const char *what, Any stream) {
  FILE *file = fopen(getenv("FAKE_CUDA_LOG"), "a");
  fprintf(file, "%s %lu\n", what, (unsigned long)(uintptr_t)stream);
  fclose(file);
}

int cuGetErrorName(int error, const char **text) { *text = "error"; YES; }
int cuGetErrorString(int error, const char **text) { *text = "error"; YES; }
int cuDriverGetVersion(int *version) { *version = 12080; YES; }
int cuInit(int flags) { YES; }
int cuDeviceGetCount(int *count) { *count = 1; YES; }
int cuDeviceGet(int *device, int number) { *device = number; YES; }
int cuDeviceGetName(char *name, int length, Any device) { strncpy(name, "none", length); YES; }
int cuDeviceGetAttribute(int *value, unsigned attribute, Any device) {
  switch (attribute) {
    case 1: *value = 1024; break;    /* threads a block */
    case 16: *value = 132; break;    /* multiprocessors */
    case 39: *value = 2048; break;   /* threads a multiprocessor */
    case 75: *value = 9; break;      /* compute capability 9.0 */
    case 76: *value = 0; break;
    case 97: *value = 232448; break; /* shared memory */
    default: *value = 1;
  }
  YES;
}
int cuDeviceGetDefaultMemPool(Any *pool, Any device) { *pool = (Any)1; YES; }
int cuMemPoolSetAttribute(Any pool, int attribute, Any value) { YES; }
int cuDevicePrimaryCtxRetain(Any *context, int device) { *context = (Any)1; YES; }
int cuCtxCreate_v2(Any *context, int flags, Any device) { *context = (Any)1; YES; }
int cuCtxGetCurrent(Any *context) { *context = (Any)1; YES; }
int cuCtxSetCurrent(Any context) { YES; }
int cuCtxSetLimit(int limit, size_t value) { YES; }

int cuMemAlloc_v2(Any *made, size_t bytes) { *made = calloc(1, bytes); YES; }
int cuMemAllocManaged(Any *made, size_t bytes, unsigned flags) { *made = calloc(1, bytes); YES; }
int cuMemAllocAsync(Any *made, size_t bytes, Any stream) { *made = calloc(1, bytes); YES; }
int cuMemFree_v2(Any memory) { free(memory); YES; }
int cuMemFreeAsync(Any memory, Any stream) { free(memory); YES; }
int cuMemGetInfo_v2(size_t *left, size_t *all) { *left = *all = (size_t)8 << 30; YES; }
int cuMemAdvise(Any memory, size_t bytes, unsigned advice, unsigned device) { YES; }
int cuPointerGetAttribute(unsigned *value, int attribute, Any memory) { *value = 2; YES; }
int cuMemsetD8_v2(Any to, unsigned char value, size_t n) { memset(to, value, n); YES; }
int cuMemsetD32_v2(uint32_t *to, uint32_t value, size_t n) { while (n--) *to++ = value; YES; }
int cuMemcpyDtoD_v2(Any to, Any from, size_t n) { memcpy(to, from, n); YES; }
int cuMemcpyHtoD_v2(Any to, Any from, size_t n) { say("wait for copy", 0); memcpy(to, from, n); YES; }
int cuMemcpyDtoH_v2(Any to, Any from, size_t n) { say("wait for copy", 0); memcpy(to, from, n); YES; }
int cuMemcpyHtoDAsync_v2(Any to, Any from, size_t n, Any stream) {
  say("copy", stream);
  memcpy(to, from, n);
  YES;
}
int cuMemcpyDtoHAsync_v2(Any to, Any from, size_t n, Any stream) {
  say("copy", stream);
  memcpy(to, from, n);
  YES;
}

int cuModuleLoadDataEx(Any *module, const char *code, unsigned n, Any keys, Any values) {
  static int number = 0;
  char name[1000];
  snprintf(name, sizeof name, "%s/%d.ptx", getenv("FAKE_CUDA_PTX"), number++);
  FILE *file = fopen(name, "w");
  fputs(code, file);
  fclose(file);
  *module = (Any)1;
  YES;
}
int cuModuleGetFunction(Any *function, Any module, const char *name) { *function = (Any)1; YES; }
int cuFuncGetAttribute(int *value, unsigned attribute, Any function) { *value = 64; YES; }
int cuFuncSetAttribute(Any function, int attribute, int value) { YES; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, Any function, int block, size_t shared) {
  *n = 8;
  YES;
}
int cuLaunchKernel(Any function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, Any stream, Any *arguments, Any *extra) {
  char what[100];
  snprintf(what, sizeof what, "launch of %u threads a block on", bx);
  say(what, stream);
  YES;
}

int cuStreamCreate(Any *stream, unsigned flags) { say("create", *stream = (Any)7); YES; }
int cuStreamSynchronize(Any stream) { say("wait for", stream); YES; }
int cuEventCreate(Any *event, unsigned flags) { YES; }
int cuEventDestroy(Any event) { YES; }
int cuEventRecord(Any event, Any stream) { YES; }
int cuEventSynchronize(Any event) { YES; }
int cuEventElapsedTime(float *time, Any begin, Any end) { *time = 0; YES; }

/* Looked for when Taichi starts, never called by us. */
int cuImportExternalMemory(void) { return 1; }
int cuImportExternalSemaphore(void) { return 1; }
int cuExternalMemoryGetMappedBuffer(void) { return 1; }
int cuExternalMemoryGetMappedMipmappedArray(void) { return 1; }
int cuMipmappedArrayGetLevel(void) { return 1; }
int cuSurfObjectCreate(void) { return 1; }
int cuSignalExternalSemaphoresAsync(void) { return 1; }
int cuWaitExternalSemaphoresAsync(void) { return 1; }
