/* What chooses among values: included by kernels.h, the same in every tier. */
#ifndef QD_KERNELS_PICK_H
#define QD_KERNELS_PICK_H

/* The places of the `count` largest of n values in their order, the first of equal ones first. */
static inline void qd_topk(const float *in, float *out, int32_t n, int32_t count) {
  int32_t i, j, last = -1;
  for (i = 0; i < count; i++) {
    int32_t best = -1;
    for (j = 0; j < n; j++) {
      int left = last < 0 || in[j] < in[last] || (in[j] == in[last] && j > last);
      if (left && (best < 0 || in[j] > in[best])) best = j;
    }
    last = best < 0 ? 0 : best; /* of values that are no numbers, any place there is */
    out[i] = (float)last;
  }
}

/* Of `outer` times `side` runs of `bytes` bytes, those at `count` places, which are below `side`. */
static inline void qd_pick(const void *source, const float *places, void *target, int32_t outer, int32_t side,
                           int32_t count, int32_t bytes) {
  int32_t i, j;
  for (i = 0; i < outer; i++)
    for (j = 0; j < count; j++)
      memcpy((char *)target + ((size_t)i * count + j) * bytes,
             (const char *)source + ((size_t)i * side + (size_t)places[j]) * bytes, (size_t)bytes);
}

#endif
