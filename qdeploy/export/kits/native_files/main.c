/* classify PHOTO               print the label, its probability and the latency of the model
 * classify --selftest GOLDENS  check that this build gives the very answers that qdeploy computed
 * classify --photos            answer photos on standard input, one after the other (wire.h)
 *
 * A photo is a binary PPM of any size, or bare bytes of the model's size. Exit codes: 0 done, 1 the self-test failed, 2
 * bad input.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "files.h"
#include "labels.h"
#include "model_info.h"
#include "photos.h"
#include "qdeploy_native.h"
#include "unknown.h"
#include "wire.h"

#define TIMED_RUNS 101

enum { DONE = 0, WRONG = 1, BAD_INPUT = 2 };

/* All the working memory there is; 64 bytes more, to align it. */
static unsigned char memory[QDEPLOY_ARENA_BYTES + 64];

static double now_ms(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void open_model(qdeploy_native *net)
{
    unsigned char *arena = memory + (64 - (uintptr_t)memory % 64) % 64;

    (void)qdeploy_native_init(net, arena, QDEPLOY_ARENA_BYTES, getenv("QDEPLOY_TIER"));
}

static const QdeployCut cuts[] = QDEPLOY_CUTS;

static int largest(const float *values)
{
    int best = 0;

    for (int i = 1; i < QDEPLOY_CLASSES; ++i) {
        best = values[i] > values[best] ? i : best;
    }
    return best;
}

static void print_answer(const float *logits, const float *probabilities)
{
    const QdeployCut *cut = cuts[0].file == NULL ? NULL : cuts;
    const int best = largest(probabilities);
    const float score = cut == NULL ? 0.0f : qdeploy_score(cut, logits[largest(logits)], probabilities[best]);

    if (cut != NULL && score < cut->threshold) {
        printf("label: unknown\nwould be: %s\n", qdeploy_labels[best]);
    } else {
        printf("label: %s\n", qdeploy_labels[best]);
    }
    if (cut != NULL) {
        printf("score: %.4f\n", score);
    }
    printf("probability: %.4f\n", probabilities[best]);
}

static int classify(const char *path)
{
    static float logits[QDEPLOY_CLASSES], probabilities[QDEPLOY_CLASSES];
    static double times_ms[TIMED_RUNS];
    static uint8_t rgb[QDEPLOY_IMAGE_BYTES];
    qdeploy_native net = {NULL, NULL};
    size_t bytes = 0;
    long width = 0, height = 0;
    uint8_t *file = read_file(path, &bytes);
    const uint8_t *photo = file == NULL ? NULL : photo_pixels(file, bytes, path, &width, &height);

    open_model(&net);
    if (photo == NULL || net.kernels == NULL || model_input(photo, (int32_t)width, (int32_t)height, rgb) != 0) {
        free(file);
        return BAD_INPUT;
    }
    for (int i = 0; i < TIMED_RUNS; ++i) {
        const double start = now_ms();

        qdeploy_native_run(&net, rgb, logits, probabilities);
        times_ms[i] = now_ms() - start;
    }
    print_answer(logits, probabilities);
    printf("kernels: %s, first run: %.3f ms, ", qdeploy_native_tier(&net), times_ms[0]);
    qsort(times_ms + 1, TIMED_RUNS - 1, sizeof *times_ms, by_size);
    printf("median of %d more: %.3f ms\n", TIMED_RUNS - 1, times_ms[1 + (TIMED_RUNS - 1) / 2]);
    free(file);
    return DONE;
}

static int selftest(const char *path)
{
    static float logits[QDEPLOY_CLASSES], probabilities[QDEPLOY_CLASSES];
    static uint8_t rgb[QDEPLOY_IMAGE_BYTES];
    qdeploy_native net = {NULL, NULL};
    Photos photos;
    size_t bytes = 0;
    uint8_t *file = read_file(path, &bytes);
    const uint8_t *photo;
    unsigned wrong = 0;

    open_model(&net);
    if (file == NULL || net.kernels == NULL || parse_photos(&photos, file, bytes, path) != 0) {
        free(file);
        return BAD_INPUT;
    }
    photo = photos.pixels;
    for (uint32_t i = 0; i < photos.count; ++i) {
        const uint32_t width = little_endian(photos.sizes + 8 * i), height = little_endian(photos.sizes + 8 * i + 4);

        if (model_input(photo, (int32_t)width, (int32_t)height, rgb) != 0) {
            free(file);
            return BAD_INPUT;
        }
        photo += (size_t)width * height * 3;
        qdeploy_native_run(&net, rgb, logits, probabilities);
        for (size_t k = 0; k < QDEPLOY_CLASSES; ++k) {
            wrong += logits[k] != float_from(photos.logits + 4 * (i * QDEPLOY_CLASSES + k));
        }
    }
    printf("selftest: %s with %s kernels, %u of %u answers differ\n", wrong == 0 ? "passed" : "FAILED",
           qdeploy_native_tier(&net), wrong, (unsigned)photos.count * QDEPLOY_CLASSES);
    free(file);
    return wrong == 0 ? DONE : WRONG;
}

static int answer_photos(void)
{
    qdeploy_native net = {NULL, NULL};

    open_model(&net);
    return net.kernels == NULL || wire_serve(&net) != 0 ? BAD_INPUT : DONE;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--photos") == 0) {
        return answer_photos();
    }
    if (argc == 3 && strcmp(argv[1], "--selftest") == 0) {
        return selftest(argv[2]);
    }
    if (argc == 2 && argv[1][0] != '-') {
        return classify(argv[1]);
    }
    fprintf(stderr, "usage: classify PHOTO\n       classify --selftest GOLDENS\n       classify --photos\n");
    return BAD_INPUT;
}
