/* A model compiled by qdeploy: one image of bytes [size][size][3] in, logits and probabilities out.
 *
 * Nothing is global and nothing is allocated: the caller gives each context its memory, and contexts may run in
 * different threads at once.
 */
#ifndef QDEPLOY_NATIVE_H
#define QDEPLOY_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define QD_API __declspec(dllexport)
#elif defined(__GNUC__)
#define QD_API __attribute__((visibility("default")))
#else
#define QD_API
#endif

typedef struct {
  void *arena;         /* working memory */
  const void *kernels; /* those of the chosen tier */
} qdeploy_native;

/* Bytes of working memory that a context needs, height and width of the images, and number of classes. */
QD_API size_t qdeploy_native_arena_bytes(void);
QD_API int qdeploy_native_size(void);
QD_API int qdeploy_native_classes(void);

/* Prepare a context. `arena` must be aligned to 64 bytes and stay until the last run. `tier` is a name as
 * qdeploy_native_tier gives it, or NULL for the fastest that this CPU has. Returns 0; 1 if the memory is too small or
 * not aligned; 2 if this CPU or this build does not have the tier. */
QD_API int qdeploy_native_init(qdeploy_native *net, void *arena, size_t bytes, const char *tier);

/* Name of the tier of kernels that a context runs: c99, avx2, vnni or neon. */
QD_API const char *qdeploy_native_tier(const qdeploy_native *net);

/* Classify one image. */
QD_API void qdeploy_native_run(const qdeploy_native *net, const uint8_t *image, float *logits, float *probabilities);

#ifdef __cplusplus
}
#endif

#endif
