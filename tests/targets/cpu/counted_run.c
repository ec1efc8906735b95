/* Runs one kernel as the busiest of CORES threads would, for QEMU to count its instructions. ARGUMENTS: its tensors. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { void *data; int32_t device[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
                 int64_t *shape, *strides; uint64_t offset; } Tensor;
typedef struct { int32_t type; uint32_t zero; void *value; } Any;
typedef struct { void *sync; int32_t tasks; } Environment;

extern int __tvm_ffi_kernel(void *, Any *, int32_t, Any *);
void TVMFFIErrorSetRaisedFromCStrParts(void) { abort(); }
extern char __start_kernel_text, __stop_kernel_text;
void *__TVMBackendParallelLaunch __attribute__((weak));
void *__TVMBackendParallelBarrier __attribute__((weak));
void *__TVMBackendAllocWorkspace __attribute__((weak));
void *__TVMBackendFreeWorkspace __attribute__((weak));

static int launch(int (*body)(int, Environment *, void *), void *data, int tasks) {
    Environment environment = {0, CORES};
    (void)tasks;
    return body(0, &environment, data);
}
static void *allocate(int type, int id, uint64_t bytes, int code, int bits) {
    (void)type, (void)id, (void)code, (void)bits;
    return aligned_alloc(64, (bytes + 127) / 64 * 64);
}
static int release(int type, int id, void *memory) { (void)type, (void)id; free(memory); return 0; }

static Tensor tensor(int code, int bits, int ndim, const int64_t *sizes) {
    uint64_t bytes = bits / 8;
    int64_t *shape = malloc(ndim * sizeof *shape);
    for (int axis = 0; axis < ndim; axis++) bytes *= shape[axis] = sizes[axis];
    Tensor made = {aligned_alloc(64, (bytes + 127) / 64 * 64), {1, 0}, ndim, code, bits, 1, shape, 0, 0};
    memset(made.data, 0, bytes);
    return made;
}

int main(void) {
    __TVMBackendParallelLaunch = (void *)launch;
    __TVMBackendAllocWorkspace = (void *)allocate;
    __TVMBackendFreeWorkspace = (void *)release;
    Tensor tensors[] = {ARGUMENTS};
    int count = sizeof tensors / sizeof *tensors;
    Any arguments[16] = {0}, result = {0};
    for (int i = 0; i < count; i++) arguments[i] = (Any){7, 0, &tensors[i]};
    int status = __tvm_ffi_kernel(0, arguments, count, &result);
    printf("%d, of %ld bytes of code\n", status, (long)(&__stop_kernel_text - &__start_kernel_text));
    return status;
}
