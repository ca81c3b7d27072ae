/* Kernels on floats for AVX-512. Part of kernels_body.h. */

/* Of a convolution on floats: a window's row is `runs` runs of `run` floats, which are `apart` floats apart. */
typedef struct {
  int32_t runs, run;
  size_t apart, pixel;
} qd_runs;

/* `pixels` neighbouring pixels by one block of 16 or 8 outputs. */
QD_INLINE void qd_tile_row(const int pixels, const int lanes, const qd_conv_f32 *p, const qd_runs *runs,
                           const float *const *rows, const float *weights, const float *bias, size_t first,
                           float *out, __mmask16 mask) {
  const size_t pixel = runs->pixel, out_pixel = (size_t)p->out_channels;
  const __m512 low = _mm512_set1_ps(p->low), high = _mm512_set1_ps(p->high);
  const int32_t window = p->rows, many = runs->runs, run = runs->run;
  __m512 sums[8];
  __m256 halves[8];
  int32_t r, c, k;
  int i;
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) {
    if (lanes == 16)
      sums[i] = _mm512_loadu_ps(bias);
    else
      halves[i] = _mm256_loadu_ps(bias);
  }
  for (r = 0; r < window; r++)
    for (c = 0; c < many; c++) {
      const float *from = rows[r] + first + (size_t)c * runs->apart;
      for (k = 0; k < run; k++, weights += lanes, from++) {
        if (lanes == 16) {
          __m512 w = _mm512_loadu_ps(weights);
          QD_UNROLL(8)
          for (i = 0; i < pixels; i++) sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(from[i * pixel]), w, sums[i]);
        } else {
          __m256 w = _mm256_loadu_ps(weights);
          QD_UNROLL(8)
          for (i = 0; i < pixels; i++) halves[i] = _mm256_fmadd_ps(_mm256_set1_ps(from[i * pixel]), w, halves[i]);
        }
      }
    }
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) {
    if (lanes == 16) {
      _mm512_mask_storeu_ps(out + i * out_pixel, mask, _mm512_min_ps(_mm512_max_ps(sums[i], low), high));
    } else {
      __m256 made = _mm256_min_ps(_mm256_max_ps(halves[i], _mm512_castps512_ps256(low)), _mm512_castps512_ps256(high));
      _mm256_mask_storeu_ps(out + i * out_pixel, (__mmask8)mask, made);
    }
  }
}

/* All pixels of a row by one block; a function of its own for each number of lanes keeps its loops in registers. */
QD_INLINE void qd_block_row(const int lanes, const qd_conv_f32 *p, const qd_runs *runs, const float *const *rows,
                            size_t block, size_t begin, float *out, __mmask16 mask) {
  const float *weights = p->weights + block * p->rows * p->columns * p->inputs * lanes, *bias = p->bias + block * lanes;
  const size_t pixel = runs->pixel, out_pixel = (size_t)p->out_channels;
  int32_t left = p->out_width;
  for (; left >= 8; left -= 8, begin += 8 * pixel, out += 8 * out_pixel)
    qd_tile_row(8, lanes, p, runs, rows, weights, bias, begin, out, mask);
  for (; left >= 4; left -= 4, begin += 4 * pixel, out += 4 * out_pixel)
    qd_tile_row(4, lanes, p, runs, rows, weights, bias, begin, out, mask);
  for (; left > 0; left--, begin += pixel, out += out_pixel)
    qd_tile_row(1, lanes, p, runs, rows, weights, bias, begin, out, mask);
}

static void qd_conv_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  const int together = p->dilation_x == 1 && p->groups == 1;
  const qd_runs runs = {together ? 1 : p->columns, together ? p->columns * p->inputs : p->inputs,
                        (size_t)p->dilation_x * p->channels, (size_t)p->stride_x * p->channels};
  int32_t g, b;
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++) {
      size_t block = (size_t)g * p->blocks + b, begin = (size_t)g * p->inputs;
      int32_t last = p->outputs - p->lanes * b < p->lanes ? p->outputs - p->lanes * b : p->lanes;
      __mmask16 mask = (__mmask16)((1u << last) - 1u);
      float *to = out + g * p->outputs + p->lanes * b;
      if (p->lanes == 16)
        qd_block_row(16, p, &runs, rows, block, begin, to, mask);
      else
        qd_block_row(8, p, &runs, rows, block, begin, to, mask);
    }
}

/* `pixels` neighbouring pixels by 16 or 8 channels, each with its own window. With `columns` of 3 and a `stride` known
 * when this is compiled, and no dilation, every input is loaded once for all pixels; else `columns` is 0. */
QD_INLINE void qd_tile_depthwise(const int pixels, const int lanes, const int columns, const int stride,
                                 const qd_conv_f32 *p, const float *const *rows, int32_t x, int32_t channel, float *out,
                                 __mmask16 mask) {
  const size_t channels = (size_t)p->channels, apart = (size_t)p->stride_x * channels;
  const __m512 low = _mm512_set1_ps(p->low), high = _mm512_set1_ps(p->high);
  const float *weights = p->weights + channel;
  __m512 sums[8];
  __m256 halves[8];
  int32_t r, c;
  int i;
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) {
    if (lanes == 16)
      sums[i] = _mm512_maskz_loadu_ps(mask, p->bias + channel);
    else
      halves[i] = _mm256_loadu_ps(p->bias + channel);
  }
  for (r = 0; r < p->rows; r++) {
    const float *from = rows[r] + x * apart + channel;
    if (columns && lanes == 16) {
      __m512 w[3], values[7 * 2 + 3];
      QD_UNROLL(3)
      for (i = 0; i < columns; i++, weights += channels) w[i] = _mm512_maskz_loadu_ps(mask, weights);
      QD_UNROLL(17)
      for (i = 0; i < (pixels - 1) * stride + columns; i++)
        values[i] = _mm512_maskz_loadu_ps(mask, from + i * channels);
      QD_UNROLL(3)
      for (c = 0; c < columns; c++)
        QD_UNROLL(8)
        for (i = 0; i < pixels; i++) sums[i] = _mm512_fmadd_ps(values[i * stride + c], w[c], sums[i]);
      continue;
    }
    if (columns) {
      __m256 w[3], values[7 * 2 + 3];
      QD_UNROLL(3)
      for (i = 0; i < columns; i++, weights += channels) w[i] = _mm256_loadu_ps(weights);
      QD_UNROLL(17)
      for (i = 0; i < (pixels - 1) * stride + columns; i++) values[i] = _mm256_loadu_ps(from + i * channels);
      QD_UNROLL(3)
      for (c = 0; c < columns; c++)
        QD_UNROLL(8)
        for (i = 0; i < pixels; i++) halves[i] = _mm256_fmadd_ps(values[i * stride + c], w[c], halves[i]);
      continue;
    }
    for (c = 0; c < p->columns; c++, from += p->dilation_x * channels, weights += channels) {
      if (lanes == 16) {
        __m512 w = _mm512_maskz_loadu_ps(mask, weights);
        QD_UNROLL(8)
        for (i = 0; i < pixels; i++)
          sums[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, from + i * apart), w, sums[i]);
      } else {
        __m256 w = _mm256_loadu_ps(weights);
        QD_UNROLL(8)
        for (i = 0; i < pixels; i++)
          halves[i] = _mm256_fmadd_ps(_mm256_loadu_ps(from + i * apart), w, halves[i]);
      }
    }
  }
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) {
    float *to = out + (size_t)(x + i) * channels + channel;
    if (lanes == 16)
      _mm512_mask_storeu_ps(to, mask, _mm512_min_ps(_mm512_max_ps(sums[i], low), high));
    else
      _mm256_storeu_ps(
          to, _mm256_min_ps(_mm256_max_ps(halves[i], _mm512_castps512_ps256(low)), _mm512_castps512_ps256(high)));
  }
}

QD_INLINE void qd_depthwise_block(const int lanes, const int columns, const int stride, const qd_conv_f32 *p,
                                  const float *const *rows, int32_t channel, float *out, __mmask16 mask) {
  int32_t x = 0;
  for (; p->out_width - x >= 8; x += 8)
    qd_tile_depthwise(8, lanes, columns, stride, p, rows, x, channel, out, mask);
  for (; p->out_width - x >= 4; x += 4)
    qd_tile_depthwise(4, lanes, columns, stride, p, rows, x, channel, out, mask);
  for (; x < p->out_width; x++) qd_tile_depthwise(1, lanes, columns, stride, p, rows, x, channel, out, mask);
}

static void qd_depthwise_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  const int known = p->columns == 3 && p->dilation_x == 1 && p->stride_x <= 2 ? p->stride_x : 0;
  int32_t channel;
  for (channel = 0; channel < p->channels; channel += 16) {
    int32_t left = p->channels - channel;
    __mmask16 mask = qd_mask(left);
    if (left == 8 && known == 1)
      qd_depthwise_block(8, 3, 1, p, rows, channel, out, mask);
    else if (left == 8 && known == 2)
      qd_depthwise_block(8, 3, 2, p, rows, channel, out, mask);
    else if (known == 1)
      qd_depthwise_block(16, 3, 1, p, rows, channel, out, mask);
    else if (known == 2)
      qd_depthwise_block(16, 3, 2, p, rows, channel, out, mask);
    else
      qd_depthwise_block(16, 0, 0, p, rows, channel, out, mask);
  }
}

QD_INLINE void qd_tile_matmul(const int rows, const qd_matmul *p, const float *a, const float *b, float *out,
                              __mmask16 mask) {
  __m512 sums[8];
  int32_t k;
  int i;
  QD_UNROLL(8)
  for (i = 0; i < rows; i++) sums[i] = _mm512_setzero_ps();
  for (k = 0; k < p->k; k++, a += p->a_k, b += p->b_k) {
    __m512 right = _mm512_maskz_loadu_ps(mask, b);
    QD_UNROLL(8)
    for (i = 0; i < rows; i++)
      sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(a[(size_t)i * p->a_m]), right, sums[i]);
  }
  QD_UNROLL(8)
  for (i = 0; i < rows; i++)
    _mm512_mask_storeu_ps(out + (size_t)i * p->n, mask,
                          _mm512_min_ps(_mm512_max_ps(sums[i], _mm512_set1_ps(p->low)), _mm512_set1_ps(p->high)));
}

static void matmul_f32_vnni(const qd_matmul *p, const float *a, const float *b, float *out) {
  int32_t i, m, n;
  for (i = 0; i < p->batch; i++)
    for (n = 0; n < p->n; n += 16) {
      __mmask16 mask = qd_mask(p->n - n);
      const float *right = b + (size_t)i * p->b_batch + n;
      for (m = 0; m < p->m;) {
        const float *left = a + (size_t)i * p->a_batch + (size_t)m * p->a_m;
        float *to = out + ((size_t)i * p->m + m) * p->n + n;
        if (p->m - m >= 8) {
          qd_tile_matmul(8, p, left, right, to, mask);
          m += 8;
        } else {
          qd_tile_matmul(1, p, left, right, to, mask);
          m++;
        }
      }
    }
}

/* qd_exp of 16 numbers of which none is above 0. */
QD_INLINE __m512 qd_exp_16(__m512 x) {
  const __m512 rounder = _mm512_set1_ps(12582912.0f);
  __m512 steps, rest, value;
  x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
  steps = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), rounder), rounder);
  rest = _mm512_fmadd_ps(steps, _mm512_set1_ps(2.12194440e-4f),
                         _mm512_fmadd_ps(steps, _mm512_set1_ps(-0.693359375f), x));
  value = _mm512_set1_ps(1.9875691500e-4f);
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.3981999507e-3f));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(8.3334519073e-3f));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(4.1665795894e-2f));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(1.6666665459e-1f));
  value = _mm512_fmadd_ps(value, rest, _mm512_set1_ps(0.5f));
  value = _mm512_add_ps(_mm512_fmadd_ps(value, _mm512_mul_ps(rest, rest), rest), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(value, steps);
}

/* The 16 lanes in pairs: each with the one 8, then 4, 2 and 1 further. */
QD_INLINE float qd_lanes_sum(__m512 x) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

#define QD_SOFTMAX_ROWS 8

/* Eight rows at a time: what one waits for, another does. */
static void softmax_vnni(const float *in, float *out, int32_t rows, int32_t n) {
  float most[QD_SOFTMAX_ROWS], sums[QD_SOFTMAX_ROWS];
  int32_t first, r, i;
  for (first = 0; first < rows; first += QD_SOFTMAX_ROWS, in += QD_SOFTMAX_ROWS * n, out += QD_SOFTMAX_ROWS * n) {
    const int32_t many = rows - first < QD_SOFTMAX_ROWS ? rows - first : QD_SOFTMAX_ROWS;
    for (r = 0; r < many; r++) {
      __m512 lanes = _mm512_set1_ps(in[r * n]);
      for (i = 0; i < n; i += 16) {
        __mmask16 mask = qd_mask(n - i);
        lanes = _mm512_mask_max_ps(lanes, mask, lanes, _mm512_maskz_loadu_ps(mask, in + r * n + i));
      }
      most[r] = _mm512_reduce_max_ps(lanes);
    }
    for (r = 0; r < many; r++) {
      __m512 lanes = _mm512_setzero_ps(), least = _mm512_set1_ps(most[r]);
      for (i = 0; i < n; i += 16) {
        __mmask16 mask = qd_mask(n - i);
        __m512 power = qd_exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, in + r * n + i), least));
        lanes = _mm512_mask_add_ps(lanes, mask, lanes, power);
        _mm512_mask_storeu_ps(out + r * n + i, mask, power);
      }
      sums[r] = qd_lanes_sum(lanes);
    }
    for (r = 0; r < many; r++)
      for (i = 0; i < n; i += 16) {
        __mmask16 mask = qd_mask(n - i);
        __m512 powers = _mm512_maskz_loadu_ps(mask, out + r * n + i);
        _mm512_mask_storeu_ps(out + r * n + i, mask, _mm512_div_ps(powers, _mm512_set1_ps(sums[r])));
      }
  }
}
