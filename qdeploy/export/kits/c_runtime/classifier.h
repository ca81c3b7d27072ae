/* One opened model: uint8 RGB pixels in, logits and probabilities out.
 *
 * Every function that returns int gives 0 on success and -1 on failure; a failure has then been explained in one line
 * on stderr. The size of the image and the number of classes are in model_info.h.
 */
#ifndef QDEPLOY_CLASSIFIER_H
#define QDEPLOY_CLASSIFIER_H

#include <stddef.h>
#include <stdint.h>

#include <onnxruntime_c_api.h>

typedef struct Classifier {
    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
} Classifier;

/* Open a model from its bytes.
 *
 * The bytes may be freed afterwards. `threads` is the number of threads of one inference, the caller's included:
 * with 1, ONNX Runtime starts none. On failure the classifier is closed already.
 */
int classifier_open(Classifier *classifier, const void *model, size_t bytes, int threads);

/* Classify one image.
 *
 * `rgb` is [QDEPLOY_SIZE][QDEPLOY_SIZE][3] bytes: rows from the top, pixels from the left, red, green, blue in 0..255.
 * Nothing is to be normalised: the model does that itself. `logits` and `probabilities` are [QDEPLOY_CLASSES].
 * May be called from several threads at a time.
 */
int classifier_run(const Classifier *classifier, const uint8_t *rgb, float *logits, float *probabilities);

/* Free everything. A classifier that is closed, or all zero, may be closed again. */
void classifier_close(Classifier *classifier);

#endif
