#define _POSIX_C_SOURCE 200112L /* setenv */

#include "classifier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#include "model_info.h"

static const OrtApi *ort; /* a table of functions, the same for all sessions */

/* Explain and free the status of a call; true if the call failed. */
static int failed(OrtStatus *status, const char *call)
{
    if (status == NULL) {
        return 0;
    }
    fprintf(stderr, "%s: %s\n", call, ort->GetErrorMessage(status));
    ort->ReleaseStatus(status);
    return 1;
}

#define TRY(call)                      \
    do {                               \
        if (failed(ort->call, #call)) { \
            goto fail;                 \
        }                              \
    } while (0)

/* ONNX Runtime 1.32 and later send usage events to their maker unless this is set; it is left as it is if it is. */
static void switch_telemetry_off(void)
{
#ifdef _WIN32
    if (getenv("ORT_DISABLE_TELEMETRY") == NULL) {
        _putenv_s("ORT_DISABLE_TELEMETRY", "1");
    }
#else
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
}

static int find_runtime(void)
{
    if (ort == NULL) {
        switch_telemetry_off();
        ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    }
    if (ort == NULL) {
        fprintf(stderr, "the ONNX Runtime library %s is older than the header (API %d); use the same version\n",
                OrtGetApiBase()->GetVersionString(), ORT_API_VERSION);
        return -1;
    }
    return 0;
}

int classifier_open(Classifier *classifier, const void *model, size_t bytes, int threads)
{
    memset(classifier, 0, sizeof *classifier);
    if (find_runtime() != 0) {
        return -1;
    }
    TRY(CreateEnv(ORT_LOGGING_LEVEL_ERROR, "qdeploy", &classifier->environment));
    TRY(CreateSessionOptions(&classifier->options));
    TRY(SetIntraOpNumThreads(classifier->options, threads));
    TRY(SetInterOpNumThreads(classifier->options, 1));
    if (cpu_saturates()) { /* an INT8 model would give wrong answers; with VNNI this entry would only slow it down */
        TRY(AddSessionConfigEntry(classifier->options, "session.x64quantprecision", "1"));
    }
    TRY(CreateSessionFromArray(classifier->environment, model, bytes, classifier->options, &classifier->session));
    TRY(CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &classifier->memory));
    return 0;
fail:
    classifier_close(classifier);
    return -1;
}

/* Copy an output of [1, QDEPLOY_CLASSES] floats, after a check that it is one. */
static int copy_output(OrtValue *value, const char *name, float *out)
{
    OrtTensorTypeAndShapeInfo *info = NULL;
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t count = 0;
    float *data = NULL;
    int result = -1;

    TRY(GetTensorTypeAndShape(value, &info));
    TRY(GetTensorElementType(info, &type));
    TRY(GetTensorShapeElementCount(info, &count));
    if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || count != QDEPLOY_CLASSES) {
        fprintf(stderr, "the output %s is not %d floats; this model does not belong to this kit\n", name,
                QDEPLOY_CLASSES);
        goto fail;
    }
    TRY(GetTensorMutableData(value, (void **)&data));
    memcpy(out, data, QDEPLOY_CLASSES * sizeof *out);
    result = 0;
fail:
    ort->ReleaseTensorTypeAndShapeInfo(info);
    return result;
}

int classifier_run(const Classifier *classifier, const uint8_t *rgb, float *logits, float *probabilities)
{
    static const char *const inputs[] = {"image"};
    static const char *const outputs[] = {"logits", "probabilities"};
    const int64_t shape[] = {1, QDEPLOY_SIZE, QDEPLOY_SIZE, 3};
    OrtValue *image = NULL;
    OrtValue *answers[2] = {NULL, NULL};
    int result = -1;

    /* The tensor borrows the caller's pixels; ONNX Runtime does not write to an input. */
    TRY(CreateTensorWithDataAsOrtValue(classifier->memory, (void *)(uintptr_t)rgb, QDEPLOY_IMAGE_BYTES, shape, 4,
                                       ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
    TRY(Run(classifier->session, NULL, inputs, (const OrtValue *const *)&image, 1, outputs, 2, answers));
    if (copy_output(answers[0], outputs[0], logits) == 0 && copy_output(answers[1], outputs[1], probabilities) == 0) {
        result = 0;
    }
fail: /* the release functions take NULL */
    ort->ReleaseValue(answers[0]);
    ort->ReleaseValue(answers[1]);
    ort->ReleaseValue(image);
    return result;
}

void classifier_close(Classifier *classifier)
{
    if (ort != NULL) {
        ort->ReleaseMemoryInfo(classifier->memory);
        ort->ReleaseSession(classifier->session);
        ort->ReleaseSessionOptions(classifier->options);
        ort->ReleaseEnv(classifier->environment);
    }
    memset(classifier, 0, sizeof *classifier);
}
