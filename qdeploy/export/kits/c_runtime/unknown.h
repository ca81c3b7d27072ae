/* Which images a model calls unknown: those whose score is below the threshold in its card.
 *
 * The score is the energy, T logsumexp(logits / T), which the largest logit and the largest probability give. The model
 * file divides its logits by the temperature T itself: the probabilities need nothing more.
 */
#ifndef QDEPLOY_UNKNOWN_H
#define QDEPLOY_UNKNOWN_H

#include <float.h>
#include <math.h>

typedef struct {
    const char *file; /* name of the model file */
    float temperature, threshold;
} QdeployCut;

static inline float qdeploy_score(const QdeployCut *cut, float largest_logit, float largest_probability)
{
    return largest_logit - cut->temperature * logf(largest_probability > FLT_MIN ? largest_probability : FLT_MIN);
}

#endif
