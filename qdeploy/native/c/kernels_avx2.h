/* The hot kernels for AVX2 with FMA. Part of kernels_body.h. */

/* Eight results of one pixel, from two sums of four results with two halves each. */
QD_INLINE void qd_store_eight(__m256i first, __m256i second, const float *multiplier, const qd_conv_u8 *p, uint8_t *to,
                              int32_t many) {
  __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(first, second), 0xD8), codes;
  __m256 steps = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_loadu_ps(multiplier));
  int32_t made[8], l;
  steps = _mm256_max_ps(steps, _mm256_set1_ps((float)(p->low - p->zero_out)));
  steps = _mm256_min_ps(steps, _mm256_set1_ps((float)(p->high - p->zero_out)));
  codes = _mm256_add_epi32(_mm256_cvtps_epi32(steps), _mm256_set1_epi32(p->zero_out));
  if (many >= 8) {
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
    return;
  }
  _mm256_storeu_si256((__m256i *)(void *)made, codes);
  for (l = 0; l < many; l++) to[l] = (uint8_t)made[l];
}

#define QD_PIXELS 4

/* Four pixels, whose windows lie widened to 16 bits, by 8 outputs of a block; nothing saturates. */
static __attribute__((noinline)) void qd_tile_u8(const qd_conv_u8 *p, const int16_t *wide, int32_t steps,
                                                 const int8_t *weights, const int32_t *bias, size_t first,
                                                 uint8_t *const *to, int32_t many) {
  const int16_t *x0 = wide, *x1 = x0 + 4 * steps, *x2 = x1 + 4 * steps, *x3 = x2 + 4 * steps;
  __m256i sums[QD_PIXELS][2];
  int32_t q;
  int i, j;
  QD_UNROLL(4)
  for (i = 0; i < QD_PIXELS; i++)
    QD_UNROLL(2)
    for (j = 0; j < 2; j++) /* the bias goes into the first half of each result */
      sums[i][j] = _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)(const void *)(bias + 4 * j)));
  for (q = 0; q < steps; q++, weights += 64, x0 += 4, x1 += 4, x2 += 4, x3 += 4) {
    int64_t four[QD_PIXELS];
    memcpy(&four[0], x0, 8);
    memcpy(&four[1], x1, 8);
    memcpy(&four[2], x2, 8);
    memcpy(&four[3], x3, 8);
    QD_UNROLL(2)
    for (j = 0; j < 2; j++) {
      __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(weights + 16 * j)));
      QD_UNROLL(4)
      for (i = 0; i < QD_PIXELS; i++)
        sums[i][j] = _mm256_add_epi32(sums[i][j], _mm256_madd_epi16(_mm256_set1_epi64x(four[i]), w));
    }
  }
  QD_UNROLL(4)
  for (i = 0; i < QD_PIXELS; i++) qd_store_eight(sums[i][0], sums[i][1], p->multiplier + first, p, to[i], many);
}

/* Widen some segments of the window of one pixel. */
static void qd_widen(const qd_conv_u8 *p, int32_t first, int32_t end, const uint8_t *from, int16_t *to) {
  const int32_t run = 4 * p->steps;
  int32_t s, k;
  for (s = first; s < end; s++, to += run) {
    const uint8_t *x = from + p->offsets[s];
    for (k = 0; k + 16 <= run; k += 16)
      _mm256_storeu_si256((__m256i *)(void *)(to + k),
                          _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(x + k))));
    for (; k < run; k++) to[k] = x[k];
  }
}

static void conv_u8_avx2(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const int32_t all = p->segments * p->steps, pixels = p->out_height * p->out_width;
  const int by_row = p->border && p->out_width % QD_PIXELS == 0; /* whether four pixels are always of one row */
  const uint8_t *image = in;
  int16_t *wide = (int16_t *)scratch;
  int32_t g, b, at, i, half, bias[16];
  if (p->padded_height != p->height || p->padded_width != p->width) {
    image = (const uint8_t *)(wide + QD_PIXELS * 4 * (size_t)all);
    qd_padded(in, (uint8_t *)(wide + QD_PIXELS * 4 * (size_t)all), p->height, p->width, p->channels, p->top, p->left,
              p->padded_height, p->padded_width, p->zero_in);
  }
  for (g = 0; g < p->groups; g++) {
    int32_t y = 0, x = 0, first = 0, end = p->segments;
    for (at = 0; at < pixels; at += QD_PIXELS) {
      uint8_t *start[QD_PIXELS], *to[QD_PIXELS];
      int32_t steps;
      if (by_row) qd_inside(p, y, &first, &end);
      steps = (end - first) * p->steps;
      for (i = 0; i < QD_PIXELS; i++) {
        qd_widen(p, first, end,
                 image + g * p->inputs +
                     ((size_t)y * p->stride_y * p->padded_width + (size_t)x * p->stride_x) * p->channels,
                 wide + i * 4 * (size_t)steps);
        start[i] = out + ((size_t)y * p->out_width + x) * p->out_channels + g * p->outputs;
        if (at + i + 1 < pixels && ++x == p->out_width) { /* beyond the end the last pixel is made again */
          x = 0;
          y++;
        }
      }
      for (b = 0; b < p->blocks; b++) {
        const size_t block = (size_t)g * p->blocks + b;
        const int8_t *weights = (const int8_t *)p->weights + (block * all + (size_t)first * p->steps) * 64;
        const int32_t *sums = p->bias + block * 16;
        if (end - first < p->segments) {
          qd_first_sums(p, first, end, block, 16, bias);
          sums = bias;
        }
        for (half = 0; half < 16 && half < p->outputs - 16 * b; half += 8) {
          for (i = 0; i < QD_PIXELS; i++) to[i] = start[i] + 16 * b + half;
          qd_tile_u8(p, wide, steps, weights + 4 * half, sums + half, block * 16 + half, to,
                     p->outputs - 16 * b - half);
        }
      }
    }
  }
}

/* `pixels` neighbouring pixels by 8 of a block's outputs. */
QD_INLINE void qd_tile_row(const int pixels, const qd_conv_f32 *p, const float *const *rows, const float *weights,
                           const float *bias, size_t first, float *out, int32_t many) {
  const size_t apart = (size_t)p->stride_x * p->channels;
  const __m256 low = _mm256_set1_ps(p->low), high = _mm256_set1_ps(p->high);
  __m256 sums[8];
  int32_t r, c, k, l;
  int i;
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) sums[i] = _mm256_loadu_ps(bias);
  for (r = 0; r < p->rows; r++)
    for (c = 0; c < p->columns; c++) {
      const float *from = rows[r] + first + (size_t)c * p->dilation_x * p->channels;
      for (k = 0; k < p->inputs; k++, weights += p->lanes, from++) {
        __m256 w = _mm256_loadu_ps(weights);
        QD_UNROLL(8)
        for (i = 0; i < pixels; i++) sums[i] = _mm256_fmadd_ps(_mm256_set1_ps(from[i * apart]), w, sums[i]);
      }
    }
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) {
    float made[8], *to = out + (size_t)i * p->out_channels;
    __m256 inside = _mm256_min_ps(_mm256_max_ps(sums[i], low), high);
    if (many >= 8) {
      _mm256_storeu_ps(to, inside);
    } else {
      _mm256_storeu_ps(made, inside);
      for (l = 0; l < many; l++) to[l] = made[l];
    }
  }
}

static void qd_conv_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t g, b, x, half;
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++)
      for (half = 0; half < p->lanes && p->lanes * b + half < p->outputs; half += 8) {
        size_t block = (size_t)g * p->blocks + b, apart = (size_t)p->stride_x * p->channels;
        const float *weights = p->weights + block * p->rows * p->columns * p->inputs * p->lanes + half;
        const float *bias = p->bias + block * p->lanes + half;
        int32_t many = p->outputs - p->lanes * b - half;
        float *to = out + g * p->outputs + p->lanes * b + half;
        for (x = 0; x < p->out_width;) {
          size_t first = x * apart + g * p->inputs;
          if (p->out_width - x >= 8) {
            qd_tile_row(8, p, rows, weights, bias, first, to + (size_t)x * p->out_channels, many);
            x += 8;
          } else {
            qd_tile_row(1, p, rows, weights, bias, first, to + (size_t)x * p->out_channels, many);
            x++;
          }
        }
      }
}

/* `pixels` neighbouring pixels by 8 channels, each with its own window. */
QD_INLINE void qd_tile_depthwise(const int pixels, const qd_conv_f32 *p, const float *const *rows, size_t first,
                                 int32_t channel, float *out) {
  const size_t apart = (size_t)p->stride_x * p->channels;
  const __m256 low = _mm256_set1_ps(p->low), high = _mm256_set1_ps(p->high);
  const float *weights = p->weights + channel;
  __m256 sums[4];
  int32_t r, c;
  int i;
  QD_UNROLL(4)
  for (i = 0; i < pixels; i++) sums[i] = _mm256_loadu_ps(p->bias + channel);
  for (r = 0; r < p->rows; r++)
    for (c = 0; c < p->columns; c++, weights += p->channels) {
      const float *from = rows[r] + first + (size_t)c * p->dilation_x * p->channels;
      __m256 w = _mm256_loadu_ps(weights);
      QD_UNROLL(4)
      for (i = 0; i < pixels; i++) sums[i] = _mm256_fmadd_ps(_mm256_loadu_ps(from + i * apart), w, sums[i]);
    }
  QD_UNROLL(4)
  for (i = 0; i < pixels; i++)
    _mm256_storeu_ps(out + (size_t)i * p->channels, _mm256_min_ps(_mm256_max_ps(sums[i], low), high));
}

static void qd_depthwise_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t x, r, c, i, k;
  for (i = 0; i < p->channels; i += 8)
    for (x = 0; x < p->out_width; x++) {
      float *to = out + (size_t)x * p->channels + i;
      size_t first = (size_t)x * p->stride_x * p->channels + i;
      if (p->channels - i >= 8) {
        if (p->out_width - x >= 4) {
          qd_tile_depthwise(4, p, rows, first, i, to);
          x += 3;
        } else {
          qd_tile_depthwise(1, p, rows, first, i, to);
        }
        continue;
      }
      for (k = 0; k < p->channels - i; k++) {
        float sum = p->bias[i + k];
        for (r = 0; r < p->rows; r++)
          for (c = 0; c < p->columns; c++)
            sum = QD_FMAF(rows[r][first + (size_t)c * p->dilation_x * p->channels + k],
                          p->weights[(size_t)(r * p->columns + c) * p->channels + i + k], sum);
        to[k] = qd_clamp(sum, p->low, p->high);
      }
    }
}

/* `rows` rows of a product by up to 16 of its columns, of which `many` are stored. */
QD_INLINE void qd_tile_matmul(const int rows, const qd_matmul *p, const float *a, const float *b, float *out) {
  __m256 sums[4][2];
  int32_t k;
  int i, j;
  QD_UNROLL(4)
  for (i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm256_setzero_ps();
  for (k = 0; k < p->k; k++, a += p->a_k, b += p->b_k) {
    __m256 first = _mm256_loadu_ps(b), second = _mm256_loadu_ps(b + 8);
    QD_UNROLL(4)
    for (i = 0; i < rows; i++) {
      __m256 factor = _mm256_set1_ps(a[(size_t)i * p->a_m]);
      sums[i][0] = _mm256_fmadd_ps(factor, first, sums[i][0]);
      sums[i][1] = _mm256_fmadd_ps(factor, second, sums[i][1]);
    }
  }
  QD_UNROLL(4)
  for (i = 0; i < rows; i++)
    QD_UNROLL(2)
    for (j = 0; j < 2; j++)
      _mm256_storeu_ps(out + (size_t)i * p->n + 8 * j, _mm256_min_ps(_mm256_max_ps(sums[i][j], _mm256_set1_ps(p->low)),
                                                                    _mm256_set1_ps(p->high)));
}

static void matmul_f32_avx2(const qd_matmul *p, const float *a, const float *b, float *out) {
  int32_t i, m, n, k, l;
  for (i = 0; i < p->batch; i++)
    for (n = 0; n < p->n; n += 16) {
      const float *right = b + (size_t)i * p->b_batch + n;
      for (m = 0; m < p->m;) {
        const float *left = a + (size_t)i * p->a_batch + (size_t)m * p->a_m;
        float *to = out + ((size_t)i * p->m + m) * p->n + n;
        if (p->n - n < 16) {
          for (l = 0; l < p->n - n; l++) {
            float sum = 0.0f;
            for (k = 0; k < p->k; k++) sum = QD_FMAF(left[(size_t)k * p->a_k], right[(size_t)k * p->b_k + l], sum);
            to[l] = qd_clamp(sum, p->low, p->high);
          }
          m++;
        } else if (p->m - m >= 4) {
          qd_tile_matmul(4, p, left, right, to);
          m += 4;
        } else {
          qd_tile_matmul(1, p, left, right, to);
          m++;
        }
      }
    }
}

/* qd_exp of 8 numbers of which none is above 0. */
QD_INLINE __m256 qd_exp_8(__m256 x) {
  const __m256 rounder = _mm256_set1_ps(12582912.0f);
  __m256 steps, rest, value;
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
  steps = _mm256_sub_ps(_mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504088896341f), rounder), rounder);
  rest = _mm256_fmadd_ps(steps, _mm256_set1_ps(2.12194440e-4f),
                         _mm256_fmadd_ps(steps, _mm256_set1_ps(-0.693359375f), x));
  value = _mm256_set1_ps(1.9875691500e-4f);
  value = _mm256_fmadd_ps(value, rest, _mm256_set1_ps(1.3981999507e-3f));
  value = _mm256_fmadd_ps(value, rest, _mm256_set1_ps(8.3334519073e-3f));
  value = _mm256_fmadd_ps(value, rest, _mm256_set1_ps(4.1665795894e-2f));
  value = _mm256_fmadd_ps(value, rest, _mm256_set1_ps(1.6666665459e-1f));
  value = _mm256_fmadd_ps(value, rest, _mm256_set1_ps(0.5f));
  value = _mm256_add_ps(_mm256_fmadd_ps(value, _mm256_mul_ps(rest, rest), rest), _mm256_set1_ps(1.0f));
  return _mm256_mul_ps(value, _mm256_castsi256_ps(_mm256_slli_epi32(
                                  _mm256_add_epi32(_mm256_cvtps_epi32(steps), _mm256_set1_epi32(127)), 23)));
}

/* The sum of 16 lanes in pairs, as qd_lane_sum does it. */
QD_INLINE float qd_halves_sum(__m256 first, __m256 second) {
  __m256 eight = _mm256_add_ps(first, second);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* Rows of multiples of 16 numbers; in place if need be. */
static void qd_softmax_whole(const float *in, float *out, int32_t rows, int32_t n) {
  int32_t r, i;
  for (r = 0; r < rows; r++, in += n, out += n) {
    __m256 most = _mm256_loadu_ps(in), low = _mm256_setzero_ps(), high = _mm256_setzero_ps(), sum;
    __m128 four;
    for (i = 8; i < n; i += 8) most = _mm256_max_ps(_mm256_loadu_ps(in + i), most);
    four = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    most = _mm256_broadcastss_ps(_mm_max_ss(four, _mm_movehdup_ps(four)));
    for (i = 0; i < n; i += 16) {
      __m256 x = qd_exp_8(_mm256_sub_ps(_mm256_loadu_ps(in + i), most));
      __m256 y = qd_exp_8(_mm256_sub_ps(_mm256_loadu_ps(in + i + 8), most));
      low = _mm256_add_ps(low, x);
      high = _mm256_add_ps(high, y);
      _mm256_storeu_ps(out + i, x);
      _mm256_storeu_ps(out + i + 8, y);
    }
    sum = _mm256_set1_ps(qd_halves_sum(low, high));
    for (i = 0; i < n; i += 8) _mm256_storeu_ps(out + i, _mm256_div_ps(_mm256_loadu_ps(out + i), sum));
  }
}

QD_INLINE __m256 qd_eight_codes(const uint8_t *from, int32_t step) {
  if (!step) return _mm256_set1_ps((float)from[0]);
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)from)));
}

QD_INLINE void qd_store_steps(uint8_t *to, __m256 steps) {
  __m256i codes = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(steps, _mm256_setzero_ps()), _mm256_set1_ps(255.0f)));
  __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

static void qd_add_run(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t n,
                       int32_t step_a, int32_t step_b) {
  const __m256 ratio_a = _mm256_set1_ps(p->ratio_a), ratio_b = _mm256_set1_ps(p->ratio_b);
  const __m256 fixed = _mm256_set1_ps(p->fixed);
  int32_t i;
  for (i = 0; i + 8 <= n; i += 8, a += 8 * step_a, b += 8 * step_b) {
    __m256 y = _mm256_fmadd_ps(qd_eight_codes(b, step_b), ratio_b, fixed);
    qd_store_steps(out + i, _mm256_fmadd_ps(qd_eight_codes(a, step_a), ratio_a, y));
  }
  for (; i < n; i++, a += step_a, b += step_b) {
    float steps = QD_FMAF((float)*a, p->ratio_a, QD_FMAF((float)*b, p->ratio_b, p->fixed));
    out[i] = (uint8_t)qd_nearest(qd_clamp(steps, 0.0f, 255.0f));
  }
}

/* Products of codes less zero points are below 2^24: exact in floats. */
static void qd_mul_run(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t n,
                       int32_t step_a, int32_t step_b) {
  const __m256 zero_a = _mm256_set1_ps((float)p->zero_a), zero_b = _mm256_set1_ps((float)p->zero_b);
  const __m256 multiplier = _mm256_set1_ps(p->multiplier), zero_out = _mm256_set1_ps(p->zero_out);
  int32_t i;
  for (i = 0; i + 8 <= n; i += 8, a += 8 * step_a, b += 8 * step_b) {
    __m256 x = _mm256_sub_ps(qd_eight_codes(a, step_a), zero_a), y = _mm256_sub_ps(qd_eight_codes(b, step_b), zero_b);
    qd_store_steps(out + i, _mm256_add_ps(_mm256_mul_ps(_mm256_mul_ps(x, y), multiplier), zero_out));
  }
  for (; i < n; i++, a += step_a, b += step_b) {
    float steps = (float)((*a - p->zero_a) * (*b - p->zero_b)) * p->multiplier + p->zero_out;
    out[i] = (uint8_t)qd_nearest(qd_clamp(steps, 0.0f, 255.0f));
  }
}

/* A code looks up all 16 rows of the table; those that begin behind it give 0, and of the others, each less (by
 * exclusive or) the one before, its own remains. Codes from 128 on are looked up in rows of their own. */
static void table_avx2(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n) {
  const __m256i half = _mm256_set1_epi8(-128), row = _mm256_set1_epi8(16);
  __m128i rows[16];
  int32_t i, r;
  for (r = 0; r < 16; r++) {
    rows[r] = _mm_loadu_si128((const __m128i *)(const void *)(table + 16 * r));
    if (r % 8) rows[r] = _mm_xor_si128(rows[r], _mm_loadu_si128((const __m128i *)(const void *)(table + 16 * r - 16)));
  }
  for (i = 0; i + 32 <= n; i += 32) {
    __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)(in + i)), high = _mm256_xor_si256(low, half);
    __m256i made = _mm256_setzero_si256();
    QD_UNROLL(8)
    for (r = 0; r < 8; r++) {
      made = _mm256_xor_si256(made, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(rows[r]), low));
      made = _mm256_xor_si256(made, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(rows[r + 8]), high));
      low = _mm256_subs_epi8(low, row);
      high = _mm256_subs_epi8(high, row);
    }
    _mm256_storeu_si256((__m256i *)(void *)(out + i), made);
  }
  for (; i < n; i++) out[i] = table[in[i]];
}
