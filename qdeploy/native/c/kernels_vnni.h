/* The hot kernels for AVX-512 with VNNI and VBMI (Intel from Ice Lake, AMD from Zen 4). Part of kernels_body.h. */

QD_INLINE __m512i qd_four(const uint8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

/* Sums times multipliers, clamped, rounded and stored: 16 results of one pixel. */
QD_INLINE void qd_store_codes(__m512i sums, const float *multiplier, const qd_conv_u8 *p, uint8_t *to, __mmask16 mask) {
  __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_loadu_ps(multiplier));
  __m512i codes;
  steps = _mm512_max_ps(steps, _mm512_set1_ps((float)(p->low - p->zero_out)));
  steps = _mm512_min_ps(steps, _mm512_set1_ps((float)(p->high - p->zero_out)));
  codes = _mm512_add_epi32(_mm512_cvtps_epi32(steps), _mm512_set1_epi32(p->zero_out));
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(codes));
}

/* `pixels` pixels by `many` blocks of 16 outputs. */
QD_INLINE void qd_tile_u8(const int pixels, const int many, const qd_conv_u8 *p, const uint8_t *const *from,
                          const int8_t *weights, size_t block_bytes, size_t block, uint8_t *const *to,
                          int32_t first) {
  __m512i sums[4 * 8];
  const uint8_t *x[8];
  int32_t s, q;
  int i, j;
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++)
#pragma GCC unroll 4
    for (j = 0; j < many; j++) sums[i * many + j] = _mm512_loadu_si512(p->bias + (block + j) * 16);
  for (s = 0; s < p->segments; s++) {
#pragma GCC unroll 8
    for (i = 0; i < pixels; i++) x[i] = from[i] + p->offsets[s];
    for (q = 0; q < p->steps; q++, weights += 64) {
      __m512i w[4];
#pragma GCC unroll 4
      for (j = 0; j < many; j++) w[j] = _mm512_loadu_si512(weights + j * block_bytes);
#pragma GCC unroll 8
      for (i = 0; i < pixels; i++) {
        __m512i four = qd_four(x[i] + 4 * q);
#pragma GCC unroll 4
        for (j = 0; j < many; j++) sums[i * many + j] = _mm512_dpbusd_epi32(sums[i * many + j], four, w[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++)
#pragma GCC unroll 4
    for (j = 0; j < many; j++) {
      int32_t left = p->outputs - first - 16 * j;
      __mmask16 mask = left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1u);
      qd_store_codes(sums[i * many + j], p->multiplier + (block + j) * 16, p, to[i] + 16 * j, mask);
    }
}

#define QD_TILE(pixels, many)                                                                                \
  static __attribute__((noinline)) void qd_tile_##pixels##_##many(                                          \
      const qd_conv_u8 *p, const uint8_t *const *from, const int8_t *weights, size_t block_bytes,            \
      size_t block, uint8_t *const *to, int32_t first) {                                                     \
    qd_tile_u8(pixels, many, p, from, weights, block_bytes, block, to, first);                               \
  }
QD_TILE(8, 2)
QD_TILE(8, 1)
QD_TILE(4, 4)
QD_TILE(4, 1)
QD_TILE(1, 4)
QD_TILE(1, 1)
#undef QD_TILE

static void conv_u8_vnni(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const size_t block_bytes = (size_t)p->segments * p->steps * 64;
  const int32_t pixels = p->out_height * p->out_width;
  const int wide = pixels >= 8 ? 2 : 4, tall = pixels >= 5 ? 8 : pixels >= 2 ? 4 : 1;
  const uint8_t *image = in;
  int32_t g, b, at, i;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks;) {
      int many = p->blocks - b >= wide ? wide : 1;
      size_t block = (size_t)g * p->blocks + b;
      const int8_t *weights = (const int8_t *)p->weights + block * block_bytes;
      int32_t y = 0, x = 0;
      for (at = 0; at < pixels; at += tall) {
        const uint8_t *from[8];
        uint8_t *to[8];
        for (i = 0; i < tall; i++) {
          from[i] = image + g * p->inputs +
                    ((size_t)y * p->stride_y * p->padded_width + (size_t)x * p->stride_x) * p->channels;
          to[i] = out + ((size_t)y * p->out_width + x) * p->out_channels + g * p->outputs + 16 * b;
          if (at + i + 1 < pixels && ++x == p->out_width) { /* beyond the end the last pixel is made again */
            x = 0;
            y++;
          }
        }
        if (tall == 8 && many == 2)
          qd_tile_8_2(p, from, weights, block_bytes, block, to, 16 * b);
        else if (tall == 8)
          qd_tile_8_1(p, from, weights, block_bytes, block, to, 16 * b);
        else if (tall == 4 && many == 4)
          qd_tile_4_4(p, from, weights, block_bytes, block, to, 16 * b);
        else if (tall == 4)
          qd_tile_4_1(p, from, weights, block_bytes, block, to, 16 * b);
        else if (many == 4)
          qd_tile_1_4(p, from, weights, block_bytes, block, to, 16 * b);
        else
          qd_tile_1_1(p, from, weights, block_bytes, block, to, 16 * b);
      }
      b += many;
    }
}

static void table_vnni(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n) {
  const __m512i t0 = _mm512_loadu_si512(table), t1 = _mm512_loadu_si512(table + 64);
  const __m512i t2 = _mm512_loadu_si512(table + 128), t3 = _mm512_loadu_si512(table + 192);
  int32_t i;
  for (i = 0; i < n; i += 64) {
    __mmask64 mask = n - i >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (n - i)) - 1;
    __m512i codes = _mm512_maskz_loadu_epi8(mask, in + i);
    __m512i low = _mm512_permutex2var_epi8(t0, codes, t1), high = _mm512_permutex2var_epi8(t2, codes, t3);
    _mm512_mask_storeu_epi8(out + i, mask, _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high));
  }
}

/* `pixels` neighbouring pixels by one block of 16 or 8 outputs. */
QD_INLINE void qd_tile_row(const int pixels, const int lanes, const qd_conv_f32 *p, const float *const *rows,
                           const float *weights, const float *bias, size_t first, float *out, __mmask16 mask) {
  const size_t apart = (size_t)p->stride_x * p->channels;
  const __m512 low = _mm512_set1_ps(p->low), high = _mm512_set1_ps(p->high);
  __m512 sums[8];
  __m256 halves[8];
  int32_t r, c, k;
  int i;
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++) {
    if (lanes == 16)
      sums[i] = _mm512_loadu_ps(bias);
    else
      halves[i] = _mm256_loadu_ps(bias);
  }
  for (r = 0; r < p->rows; r++)
    for (c = 0; c < p->columns; c++) {
      const float *from = rows[r] + first + (size_t)c * p->dilation_x * p->channels;
      for (k = 0; k < p->inputs; k++, weights += lanes, from++) {
        if (lanes == 16) {
          __m512 w = _mm512_loadu_ps(weights);
#pragma GCC unroll 8
          for (i = 0; i < pixels; i++) sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(from[i * apart]), w, sums[i]);
        } else {
          __m256 w = _mm256_loadu_ps(weights);
#pragma GCC unroll 8
          for (i = 0; i < pixels; i++) halves[i] = _mm256_fmadd_ps(_mm256_set1_ps(from[i * apart]), w, halves[i]);
        }
      }
    }
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++) {
    float *to = out + (size_t)i * p->out_channels;
    __m512 made = lanes == 16 ? sums[i] : _mm512_zextps256_ps512(halves[i]);
    _mm512_mask_storeu_ps(to, mask, _mm512_min_ps(_mm512_max_ps(made, low), high));
  }
}

static void qd_conv_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t g, b, x;
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++) {
      size_t block = (size_t)g * p->blocks + b, apart = (size_t)p->stride_x * p->channels;
      const float *weights = p->weights + block * p->rows * p->columns * p->inputs * p->lanes;
      const float *bias = p->bias + block * p->lanes;
      int32_t last = p->outputs - p->lanes * b < p->lanes ? p->outputs - p->lanes * b : p->lanes;
      __mmask16 mask = (__mmask16)((1u << last) - 1u);
      float *to = out + g * p->outputs + p->lanes * b;
      for (x = 0; x < p->out_width;) {
        size_t first = x * apart + g * p->inputs;
        float *here = to + (size_t)x * p->out_channels;
        if (p->out_width - x >= 8) {
          if (p->lanes == 16)
            qd_tile_row(8, 16, p, rows, weights, bias, first, here, mask);
          else
            qd_tile_row(8, 8, p, rows, weights, bias, first, here, mask);
          x += 8;
        } else {
          if (p->lanes == 16)
            qd_tile_row(1, 16, p, rows, weights, bias, first, here, mask);
          else
            qd_tile_row(1, 8, p, rows, weights, bias, first, here, mask);
          x++;
        }
      }
    }
}

QD_INLINE void qd_tile_matmul(const int rows, const qd_matmul *p, const float *a, const float *b, float *out,
                              __mmask16 mask) {
  __m512 sums[8];
  int32_t k;
  int i;
#pragma GCC unroll 8
  for (i = 0; i < rows; i++) sums[i] = _mm512_setzero_ps();
  for (k = 0; k < p->k; k++, a += p->a_k, b += p->b_k) {
    __m512 right = _mm512_maskz_loadu_ps(mask, b);
#pragma GCC unroll 8
    for (i = 0; i < rows; i++)
      sums[i] = _mm512_fmadd_ps(_mm512_set1_ps(a[(size_t)i * p->a_m]), right, sums[i]);
  }
#pragma GCC unroll 8
  for (i = 0; i < rows; i++)
    _mm512_mask_storeu_ps(out + (size_t)i * p->n, mask,
                          _mm512_min_ps(_mm512_max_ps(sums[i], _mm512_set1_ps(p->low)), _mm512_set1_ps(p->high)));
}

static void matmul_f32_vnni(const qd_matmul *p, const float *a, const float *b, float *out) {
  int32_t i, m, n;
  for (i = 0; i < p->batch; i++)
    for (n = 0; n < p->n; n += 16) {
      __mmask16 mask = p->n - n >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (p->n - n)) - 1u);
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

/* Codes of b are lowered by 128 and packed in fours along k; sums of rows and columns put the zero points right. */
static void matmul_u8_vnni(const qd_matmul *p, const uint8_t *a, const uint8_t *b, uint8_t *out, void *scratch) {
  const int32_t steps = (p->k + 3) / 4, padded = 4 * steps;
  int8_t *packed = (int8_t *)scratch;                     /* [steps][16][4] */
  uint8_t *rows = (uint8_t *)scratch + (size_t)steps * 64; /* [m][padded] */
  int32_t i, m, n, k, l;
  for (i = 0; i < p->batch; i++) {
    for (m = 0; m < p->m; m++)
      for (k = 0; k < padded; k++)
        rows[m * padded + k] =
            k < p->k ? a[(size_t)i * p->a_batch + (size_t)m * p->a_m + (size_t)k * p->a_k] : (uint8_t)0;
    for (n = 0; n < p->n; n += 16) {
      int32_t width = p->n - n < 16 ? p->n - n : 16, columns[16] = {0};
      const uint8_t *right = b + (size_t)i * p->b_batch + n;
      __mmask16 mask = (__mmask16)((1u << width) - 1u);
      memset(packed, 0, (size_t)steps * 64);
      for (k = 0; k < p->k; k++)
        for (l = 0; l < width; l++) {
          int32_t code = right[(size_t)k * p->b_k + l];
          packed[(k / 4) * 64 + l * 4 + k % 4] = (int8_t)(code - 128);
          columns[l] += code - p->zero_b;
        }
      for (m = 0; m < p->m; m++) {
        const uint8_t *left = rows + m * padded;
        int32_t total = 0;
        __m512i sums = _mm512_mullo_epi32(_mm512_loadu_si512(columns), _mm512_set1_epi32(-p->zero_a));
        __m512 made;
        for (k = 0; k < p->k; k++) total += left[k];
        sums = _mm512_add_epi32(sums, _mm512_set1_epi32((128 - p->zero_b) * total));
        for (k = 0; k < steps; k++)
          sums = _mm512_dpbusd_epi32(sums, qd_four(left + 4 * k), _mm512_loadu_si512(packed + k * 64));
        made = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(p->multiplier));
        made = _mm512_max_ps(made, _mm512_set1_ps((float)-p->zero_out));
        made = _mm512_min_ps(made, _mm512_set1_ps((float)(255 - p->zero_out)));
        sums = _mm512_add_epi32(_mm512_cvtps_epi32(made), _mm512_set1_epi32(p->zero_out));
        _mm_mask_storeu_epi8(out + ((size_t)i * p->m + m) * p->n + n, mask, _mm512_cvtepi32_epi8(sums));
      }
    }
  }
}

/* `pixels` neighbouring pixels by 16 or 8 channels, each with its own window. */
QD_INLINE void qd_tile_depthwise(const int pixels, const int lanes, const qd_conv_f32 *p, const float *const *rows,
                                 int32_t x, int32_t channel, float *out, __mmask16 mask) {
  const size_t apart = (size_t)p->stride_x * p->channels;
  __m512 sums[8];
  __m256 halves[8];
  int32_t r, c;
  int i;
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++) {
    if (lanes == 16)
      sums[i] = _mm512_maskz_loadu_ps(mask, p->bias + channel);
    else
      halves[i] = _mm256_loadu_ps(p->bias + channel);
  }
  for (r = 0; r < p->rows; r++)
    for (c = 0; c < p->columns; c++) {
      const float *from = rows[r] + x * apart + (size_t)c * p->dilation_x * p->channels + channel;
      const float *weights = p->weights + (size_t)(r * p->columns + c) * p->channels + channel;
      if (lanes == 16) {
        __m512 w = _mm512_maskz_loadu_ps(mask, weights);
#pragma GCC unroll 8
        for (i = 0; i < pixels; i++)
          sums[i] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, from + i * apart), w, sums[i]);
      } else {
        __m256 w = _mm256_loadu_ps(weights);
#pragma GCC unroll 8
        for (i = 0; i < pixels; i++)
          halves[i] = _mm256_fmadd_ps(_mm256_loadu_ps(from + i * apart), w, halves[i]);
      }
    }
#pragma GCC unroll 8
  for (i = 0; i < pixels; i++) {
    __m512 made = lanes == 16 ? sums[i] : _mm512_zextps256_ps512(halves[i]);
    made = _mm512_min_ps(_mm512_max_ps(made, _mm512_set1_ps(p->low)), _mm512_set1_ps(p->high));
    _mm512_mask_storeu_ps(out + (size_t)(x + i) * p->channels + channel, mask, made);
  }
}

static void qd_depthwise_row(const qd_conv_f32 *p, const float *const *rows, float *out) {
  int32_t x, channel;
  for (channel = 0; channel < p->channels;) {
    int32_t left = p->channels - channel;
    int eight = left == 8;
    __mmask16 mask = left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1u);
    for (x = 0; x < p->out_width;) {
      if (p->out_width - x >= 8) {
        if (eight)
          qd_tile_depthwise(8, 8, p, rows, x, channel, out, mask);
        else
          qd_tile_depthwise(8, 16, p, rows, x, channel, out, mask);
        x += 8;
      } else {
        if (eight)
          qd_tile_depthwise(1, 8, p, rows, x, channel, out, mask);
        else
          qd_tile_depthwise(1, 16, p, rows, x, channel, out, mask);
        x++;
      }
    }
    channel += 16;
  }
}

/* 16 codes as the low or the high halves of 32-bit numbers: two of the window's places are multiplied at once. */
QD_INLINE __m512i qd_pair(__m512i low, __m512i high) { return _mm512_or_si512(low, _mm512_slli_epi32(high, 16)); }

#define QD_MAX_TAPS 64

static void depthwise_u8_vnni(const qd_depthwise_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const int32_t taps = p->rows * p->columns;
  const uint8_t *image = in;
  size_t offsets[QD_MAX_TAPS];
  __m512i weights[QD_MAX_TAPS / 2];
  int32_t y, x, t, channel;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (t = 0; t < taps; t++)
    offsets[t] = ((size_t)(t / p->columns) * p->dilation_y * p->padded_width +
                  (size_t)(t % p->columns) * p->dilation_x) * p->channels;
  for (channel = 0; channel < p->channels; channel += 16) {
    int32_t left = p->channels - channel;
    __mmask16 mask = left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1u);
    __m512i bias = _mm512_maskz_loadu_epi32(mask, p->bias + channel);
    __m512 multiplier = _mm512_maskz_loadu_ps(mask, p->multiplier + channel);
    for (t = 0; t < taps; t++) {
      __m256i own = _mm256_maskz_loadu_epi16(mask, p->weights + t * p->channels + channel);
      if (t % 2)
        weights[t / 2] = qd_pair(weights[t / 2], _mm512_cvtepu16_epi32(own));
      else
        weights[t / 2] = _mm512_cvtepu16_epi32(own);
    }
    for (y = 0; y < p->out_height; y++)
      for (x = 0; x < p->out_width; x++) {
        const uint8_t *from = image + channel +
                              ((size_t)y * p->stride_y * p->padded_width + (size_t)x * p->stride_x) * p->channels;
        __m512i sums = bias, codes;
        __m512 steps;
        for (t = 0; t + 1 < taps; t += 2) {
          __m512i a = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from + offsets[t]));
          __m512i b = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from + offsets[t + 1]));
          sums = _mm512_add_epi32(sums, _mm512_madd_epi16(qd_pair(a, b), weights[t / 2]));
        }
        if (t < taps) {
          __m512i a = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from + offsets[t]));
          sums = _mm512_add_epi32(sums, _mm512_madd_epi16(a, weights[t / 2]));
        }
        steps = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier);
        steps = _mm512_max_ps(steps, _mm512_set1_ps((float)(p->low - p->zero_out)));
        steps = _mm512_min_ps(steps, _mm512_set1_ps((float)(p->high - p->zero_out)));
        codes = _mm512_add_epi32(_mm512_cvtps_epi32(steps), _mm512_set1_epi32(p->zero_out));
        _mm_mask_storeu_epi8(out + ((size_t)y * p->out_width + x) * p->channels + channel, mask,
                             _mm512_cvtepi32_epi8(codes));
      }
  }
}

/* qd_exp of 16 numbers. */
QD_INLINE __m512 qd_exp_16(__m512 x) {
  const __m512 rounder = _mm512_set1_ps(12582912.0f);
  __m512 steps, rest, value;
  x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(88.0f));
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
  steps = _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(steps), _mm512_set1_epi32(127)), 23));
  return _mm512_mul_ps(value, steps);
}

static void softmax_vnni(const float *in, float *out, int32_t rows, int32_t n) {
  int32_t r, i, l, width;
  for (r = 0; r < rows; r++, in += n, out += n) {
    __m512 most = _mm512_set1_ps(in[0]), sums = _mm512_setzero_ps(), sum;
    float lanes[16];
    for (i = 0; i < n; i += 16) {
      __mmask16 mask = n - i >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - i)) - 1u);
      most = _mm512_mask_max_ps(most, mask, most, _mm512_maskz_loadu_ps(mask, in + i));
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (i = 0; i < n; i += 16) {
      __mmask16 mask = n - i >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - i)) - 1u);
      __m512 power = qd_exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, in + i), most));
      sums = _mm512_mask_add_ps(sums, mask, sums, power);
      _mm512_mask_storeu_ps(out + i, mask, power);
    }
    _mm512_storeu_ps(lanes, sums);
    for (width = 8; width; width /= 2)
      for (l = 0; l < width; l++) lanes[l] += lanes[l + width];
    sum = _mm512_set1_ps(lanes[0]);
    for (i = 0; i < n; i += 16) {
      __mmask16 mask = n - i >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - i)) - 1u);
      _mm512_mask_storeu_ps(out + i, mask, _mm512_div_ps(_mm512_maskz_loadu_ps(mask, out + i), sum));
    }
  }
}

QD_INLINE __m512i qd_codes(const uint8_t *from, int32_t stride, __mmask16 mask) {
  return stride ? _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, from)) : _mm512_set1_epi32(from[0]);
}

QD_INLINE void qd_store_steps(uint8_t *to, __mmask16 mask, __m512 steps) {
  steps = _mm512_min_ps(_mm512_max_ps(steps, _mm512_setzero_ps()), _mm512_set1_ps(255.0f));
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(steps)));
}

static void qd_add_run(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t n,
                       int32_t step_a, int32_t step_b) {
  const __m512 ratio_a = _mm512_set1_ps(p->ratio_a), ratio_b = _mm512_set1_ps(p->ratio_b);
  const __m512 fixed = _mm512_set1_ps(p->fixed);
  int32_t i;
  for (i = 0; i < n; i += 16) {
    __mmask16 mask = n - i >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - i)) - 1u);
    __m512 x = _mm512_cvtepi32_ps(qd_codes(a + (step_a ? i : 0), step_a, mask));
    __m512 y = _mm512_cvtepi32_ps(qd_codes(b + (step_b ? i : 0), step_b, mask));
    qd_store_steps(out + i, mask, _mm512_fmadd_ps(x, ratio_a, _mm512_fmadd_ps(y, ratio_b, fixed)));
  }
}

static void qd_mul_run(const qd_binary_u8 *p, const uint8_t *a, const uint8_t *b, uint8_t *out, int32_t n,
                       int32_t step_a, int32_t step_b) {
  const __m512 multiplier = _mm512_set1_ps(p->multiplier), zero_out = _mm512_set1_ps(p->zero_out);
  int32_t i;
  for (i = 0; i < n; i += 16) {
    __mmask16 mask = n - i >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << (n - i)) - 1u);
    __m512i x = _mm512_sub_epi32(qd_codes(a + (step_a ? i : 0), step_a, mask), _mm512_set1_epi32(p->zero_a));
    __m512i y = _mm512_sub_epi32(qd_codes(b + (step_b ? i : 0), step_b, mask), _mm512_set1_epi32(p->zero_b));
    __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_mullo_epi32(x, y)), multiplier);
    qd_store_steps(out + i, mask, _mm512_add_ps(steps, zero_out));
  }
}
