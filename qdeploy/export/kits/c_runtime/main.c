/* classify MODEL IMAGE [THREADS]        print the label, its probability and the latency
 * classify --selftest MODEL GOLDENS     check that this machine gives the answers that the model was exported with
 *
 * Exit codes: 0 done, 1 the self-test failed, 2 bad input.
 */
#define _POSIX_C_SOURCE 199309L /* clock_gettime */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "classifier.h"
#include "files.h"
#include "labels.h"
#include "model_info.h"
#include "unknown.h"

#define TIMED_RUNS 101
#define MAX_THREADS 64

enum { DONE = 0, WRONG = 1, BAD_INPUT = 2 };

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

static int open_model(Classifier *classifier, const char *path, int threads)
{
    size_t bytes = 0;
    uint8_t *model = read_file(path, &bytes);
    int result = -1;

    if (model != NULL) {
        result = classifier_open(classifier, model, bytes, threads);
        free(model);
    }
    return result;
}

static const QdeployCut cuts[] = QDEPLOY_CUTS;

/* Find a model's threshold by the name of its file; NULL if it answers all images. */
static const QdeployCut *cut_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;

    for (const QdeployCut *cut = cuts; cut->file != NULL; ++cut) {
        if (strcmp(cut->file, name) == 0) {
            return cut;
        }
    }
    return NULL;
}

static int largest(const float *values)
{
    int best = 0;

    for (int i = 1; i < QDEPLOY_CLASSES; ++i) {
        best = values[i] > values[best] ? i : best;
    }
    return best;
}

/* A label is data: its control bytes are shown and move no cursor. */
static void print_label(const char *what, const char *label)
{
    printf("%s: ", what);
    for (; *label; ++label) {
        const unsigned char byte = (unsigned char)*label;
        if (byte < 0x20 || byte == 0x7f) {
            printf("\\x%02x", byte);
        } else {
            putchar(byte);
        }
    }
    putchar('\n');
}

static void print_answer(const QdeployCut *cut, const float *logits, const float *probabilities, double *times_ms,
                         double load_ms)
{
    const int best = largest(probabilities);
    const float score = cut == NULL ? 0.0f : qdeploy_score(cut, logits[largest(logits)], probabilities[best]);

    if (cut != NULL && score < cut->threshold) {
        printf("label: unknown\n");
        print_label("would be", qdeploy_labels[best]);
    } else {
        print_label("label", qdeploy_labels[best]);
    }
    if (cut != NULL) {
        printf("score: %.4f\n", score);
    }
    printf("probability: %.4f\n", probabilities[best]);
    printf("load: %.1f ms, first run: %.3f ms, ", load_ms, times_ms[0]);
    qsort(times_ms + 1, TIMED_RUNS - 1, sizeof *times_ms, by_size);
    printf("median of %d more: %.3f ms\n", TIMED_RUNS - 1, times_ms[1 + (TIMED_RUNS - 1) / 2]);
}

static int classify(const char *model, const char *path, int threads)
{
    static float logits[QDEPLOY_CLASSES], probabilities[QDEPLOY_CLASSES];
    static double times_ms[TIMED_RUNS];
    Classifier classifier = {0};
    size_t bytes = 0;
    uint8_t *file = read_file(path, &bytes);
    const uint8_t *rgb = file == NULL ? NULL : image_pixels(file, bytes, path);
    const double begin = now_ms();
    double load_ms;
    int result = BAD_INPUT;

    if (rgb == NULL || open_model(&classifier, model, threads) != 0) {
        goto done;
    }
    load_ms = now_ms() - begin;
    for (int i = 0; i < TIMED_RUNS; ++i) {
        const double start = now_ms();

        if (classifier_run(&classifier, rgb, logits, probabilities) != 0) {
            goto done;
        }
        times_ms[i] = now_ms() - start;
    }
    for (int i = 0; i < QDEPLOY_CLASSES; ++i) {
        if (!isfinite(probabilities[i])) { /* NaN has no place in an order */
            fprintf(stderr, "%s: the model's answer to it is not finite; the model file is not sound\n", path);
            goto done;
        }
    }
    print_answer(cut_of(model), logits, probabilities, times_ms, load_ms);
    result = DONE;
done:
    classifier_close(&classifier);
    free(file);
    return result;
}

/* Run the goldens; gives the signal-to-noise ratio of the logits in decibels, or NaN if a run failed. */
static double agreement_db(const Classifier *classifier, const Goldens *goldens)
{
    static float logits[QDEPLOY_CLASSES], probabilities[QDEPLOY_CLASSES];
    double signal = 0.0, noise = 0.0;

    for (size_t i = 0; i < goldens->count; ++i) {
        if (classifier_run(classifier, goldens->images + i * QDEPLOY_IMAGE_BYTES, logits, probabilities) != 0) {
            return NAN;
        }
        for (size_t k = 0; k < QDEPLOY_CLASSES; ++k) {
            const double expected = golden_logit(goldens, i * QDEPLOY_CLASSES + k);

            signal += expected * expected;
            noise += (logits[k] - expected) * (logits[k] - expected);
        }
    }
    return 10.0 * log10(signal / (noise > 1e-30 ? noise : 1e-30));
}

static int selftest(const char *model, const char *path)
{
    Classifier classifier = {0};
    Goldens goldens;
    size_t bytes = 0;
    uint8_t *file = read_file(path, &bytes);
    int result = BAD_INPUT;

    if (file != NULL && parse_goldens(&goldens, file, bytes, path) == 0 && open_model(&classifier, model, 1) == 0) {
        const double found_db = agreement_db(&classifier, &goldens);

        result = found_db >= goldens.min_sqnr_db ? DONE : WRONG; /* NaN is wrong, too */
        printf("selftest: %s, %.1f dB on %u images, at least %.0f dB expected\n", result == DONE ? "passed" : "FAILED",
               found_db, (unsigned)goldens.count, goldens.min_sqnr_db);
    }
    classifier_close(&classifier);
    free(file);
    return result;
}

int main(int argc, char **argv)
{
    const int threads = argc == 4 ? atoi(argv[3]) : 1;

    if (argc == 4 && strcmp(argv[1], "--selftest") == 0) {
        return selftest(argv[2], argv[3]);
    }
    if ((argc == 3 || argc == 4) && argv[1][0] != '-' && threads >= 1 && threads <= MAX_THREADS) {
        return classify(argv[1], argv[2], threads);
    }
    fprintf(stderr, "usage: classify MODEL IMAGE [THREADS 1..%d]\n       classify --selftest MODEL GOLDENS\n",
            MAX_THREADS);
    return BAD_INPUT;
}
