/* Compiled modules from C: load a .twm file, run it, read the results. Link with the files of this bundle; no Python.
 *
 * Every function that can fail returns 0 on success; tensorwright_last_error() then says what went wrong on this thread.
 * A module and its sessions may be used by one thread at a time, and concurrent calls are errors; share it
 * (tensorwright_share) for each thread that runs it. No more runs compute at a time than the processors have room for;
 * the others wait, in order.
 */
#ifndef TENSORWRIGHT_H_
#define TENSORWRIGHT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tensorwright_module tensorwright_module;
typedef struct tensorwright_session tensorwright_session;
typedef struct tensorwright_image tensorwright_image;

/* A tensor in row-major order. `dtype` is the element type's name ("float32", "int64", "bool", ...). As an input,
 * `data` need not be aligned; at a multiple of 64 bytes it is read in place, and not copied. As an output, all pointers
 * stay valid until the module runs again or is freed. */
typedef struct {
  const char* name;
  const char* dtype;
  int32_t rank;
  const int64_t* shape;
  void* data;
  size_t bytes;
} tensorwright_tensor;

/* The error of the last call on this thread, or "" if it succeeded. */
const char* tensorwright_last_error(void);

/* Read a module; every byte is checked against its checksums before any of it is used. */
int tensorwright_load(const char* path, tensorwright_module** module);

/* The module linked into this program (`tensorwright bundle --static`). */
int tensorwright_load_linked(tensorwright_module** module);

/* The same for modules that must have a valid Ed25519 signature by one of `count` keys. `trusted_keys` are paths of
 * public keys in PEM form, or of folders of such files (*.pem, *.pub). `path` NULL: the module linked into this
 * program. */
int tensorwright_load_trusted(const char* path, const char* const* trusted_keys, size_t count, tensorwright_module** module);

/* The same code and parameters for another thread, with its own memory for intermediate results. Each is freed
 * separately, in any order. */
int tensorwright_share(const tensorwright_module* module, tensorwright_module** shared);

/* Number of threads per run of this module; by default TVM_NUM_THREADS, the module's own setting, or the number of
 * cores. */
int tensorwright_set_threads(tensorwright_module* module, int32_t threads);

void tensorwright_free(tensorwright_module* module);

/* Names, types and shapes of the module's inputs and outputs; a symbolic dimension is -1. `data` is NULL. */
int32_t tensorwright_input_count(const tensorwright_module* module);
int32_t tensorwright_output_count(const tensorwright_module* module);
int tensorwright_input(const tensorwright_module* module, int32_t index, tensorwright_tensor* description);
int tensorwright_output(const tensorwright_module* module, int32_t index, tensorwright_tensor* description);

/* The pixels of a PNG, JPEG, GIF or BMP file of at most 67 million pixels, rotated according to its EXIF data: uint8
 * (height, width, 3) in RGB, as modules with processing expect. `pixels` points into `image` until that is freed. */
int tensorwright_image_open(const char* path, tensorwright_image** image, tensorwright_tensor* pixels);
void tensorwright_image_free(tensorwright_image* image);

/* Bytes of an element of this type ("float32": 4); 0 for an unknown one. */
size_t tensorwright_element_bytes(const char* dtype);

/* Run on `inputs`, in the module's order; `outputs` (as many as the module has) are set to point to the results. */
int tensorwright_run(tensorwright_module* module, const tensorwright_tensor* inputs, tensorwright_tensor* outputs);

/* Run the stored example and compare with the stored outputs; fails if an output differs by more than the tolerance.
 * `largest_difference` may be NULL. */
int tensorwright_verify(tensorwright_module* module, double* largest_difference);

/* A session keeps the states of a module from one run to the next. Several sessions of one module are independent; all
 * of them are run by the thread that runs the module, which is kept as long as they are. `capacity`: number of rows of
 * the states, for a module with a dynamic number; otherwise 0. */
int tensorwright_session_open(tensorwright_module* module, int64_t capacity, tensorwright_session** session);
void tensorwright_session_free(tensorwright_session* session);

/* Inputs and outputs of a session's run: the module's, without the states kept by the session. */
int32_t tensorwright_session_input_count(const tensorwright_session* session);
int32_t tensorwright_session_output_count(const tensorwright_session* session);
int tensorwright_session_input(const tensorwright_session* session, int32_t index, tensorwright_tensor* description);
int tensorwright_session_output(const tensorwright_session* session, int32_t index, tensorwright_tensor* description);

/* One step: like tensorwright_run, with the states updated. Fails before anything is written if they are full. */
int tensorwright_session_run(tensorwright_session* session, const tensorwright_tensor* inputs, tensorwright_tensor* outputs);

/* The number of rows of the states in use; restore the initial states; discard the last rows; another session in the
 * same state; and save and load the states in files of the Python package's format. */
int64_t tensorwright_session_length(const tensorwright_session* session);
int tensorwright_session_reset(tensorwright_session* session);
int tensorwright_session_rewind(tensorwright_session* session, int64_t rows);
int tensorwright_session_fork(const tensorwright_session* session, tensorwright_session** fork);
int tensorwright_session_save(const tensorwright_session* session, const char* path);
int tensorwright_session_load(tensorwright_session* session, const char* path);

#ifdef __cplusplus
}
#endif
#endif
