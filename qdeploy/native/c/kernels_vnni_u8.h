/* More kernels on codes for AVX-512 with VNNI and VBMI. Part of kernels_body.h. */

/* Four vectors of 64 bytes as four of 16 dwords, each of a byte of all four. Dword d of lane l of the vector k is of
 * the place 16 * l + 4 * k + d, and packing the four vectors puts all places in order again. */
QD_INLINE void qd_interleave(const __m512i *x, __m512i *fours) {
  __m512i low = _mm512_unpacklo_epi8(x[0], x[1]), high = _mm512_unpackhi_epi8(x[0], x[1]);
  __m512i low_2 = _mm512_unpacklo_epi8(x[2], x[3]), high_2 = _mm512_unpackhi_epi8(x[2], x[3]);
  fours[0] = _mm512_unpacklo_epi16(low, low_2);
  fours[1] = _mm512_unpackhi_epi16(low, low_2);
  fours[2] = _mm512_unpacklo_epi16(high, high_2);
  fours[3] = _mm512_unpackhi_epi16(high, high_2);
}

#define QD_MAX_TAPS 64

/* Where 64 results of a depthwise convolution take their inputs. */
typedef struct {
  size_t offsets[QD_MAX_TAPS]; /* of each place of the window */
  __m512i even;                /* the bytes of every second pixel of 128 bytes */
} qd_taps;

/* The inputs of one place: `bytes` bytes, or with a `stride` of 2 as many, of every second pixel. */
QD_INLINE __m512i qd_tap(const int stride, const qd_taps *taps, const uint8_t *from, int32_t bytes, int32_t channels) {
  __m512i low, high;
  if (stride == 1) return _mm512_maskz_loadu_epi8(qd_bytes_mask(bytes), from);
  low = _mm512_maskz_loadu_epi8(qd_bytes_mask(2 * bytes - channels), from);
  high = _mm512_maskz_loadu_epi8(qd_bytes_mask(2 * bytes - channels - 64), from + 64);
  return _mm512_permutex2var_epi8(low, taps->even, high);
}

/* 64 results; the number of `places` of the window is known when this is compiled, or 0. */
QD_INLINE __m512i qd_depthwise_64(const int places, const int stride, const qd_depthwise_u8 *p, const qd_taps *taps,
                                  int32_t block, const uint8_t *from, int32_t bytes) {
  const int count = places ? places : p->rows * p->columns, groups = (count + 3) / 4;
  const int8_t *weights = p->packed + (size_t)block * groups * 256;
  __m512i sums[4], x[4], fours[4];
  __m512 multipliers[4];
  int g, i;
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) {
    sums[i] = _mm512_loadu_si512(p->packed_bias + block * 64 + 16 * i);
    multipliers[i] = _mm512_loadu_ps(p->packed_multiplier + block * 64 + 16 * i);
  }
  for (g = 0; g < groups; g++, weights += 256) {
    QD_UNROLL(4)
    for (i = 0; i < 4; i++)
      x[i] = 4 * g + i < count ? qd_tap(stride, taps, from + taps->offsets[4 * g + i], bytes, p->channels)
                               : _mm512_setzero_si512();
    qd_interleave(x, fours);
    QD_UNROLL(4)
    for (i = 0; i < 4; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], fours[i], _mm512_loadu_si512(weights + 64 * i));
  }
  return qd_limited(qd_packed_codes(sums, multipliers, p->bounded, p->zero_out), p->low, p->high);
}

/* One row: `fold` neighbouring pixels of few channels at once, or 64 channels of one pixel. */
QD_INLINE void qd_depthwise_u8_row(const int places, const int stride, const qd_depthwise_u8 *p, const qd_taps *taps,
                                   int32_t fold, const uint8_t *from, uint8_t *to) {
  int32_t x, block;
  for (x = 0; x < p->out_width; x += fold, from += (size_t)fold * p->stride_x * p->channels) {
    int32_t left = (p->out_width - x < fold ? p->out_width - x : fold) * p->channels, bytes;
    for (block = 0; left > 0; block++, left -= 64, to += bytes) {
      bytes = left < 64 ? left : 64;
      _mm512_mask_storeu_epi8(to, qd_bytes_mask(bytes),
                              qd_depthwise_64(places, stride, p, taps, block, from + 64 * block, bytes));
    }
  }
}

static void depthwise_u8_vnni(const qd_depthwise_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const int32_t fold = p->channels < 64 && 64 % p->channels == 0 && p->stride_x <= 2 ? 64 / p->channels : 1;
  const int nine = p->rows * p->columns == 9, apart = fold > 1 && p->stride_x == 2;
  const uint8_t *image = in;
  qd_taps taps;
  uint8_t even[64];
  int32_t y, t;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (t = 0; t < p->rows * p->columns; t++)
    taps.offsets[t] = ((size_t)(t / p->columns) * p->dilation_y * p->padded_width +
                       (size_t)(t % p->columns) * p->dilation_x) * p->channels;
  for (t = 0; t < 64; t++) even[t] = (uint8_t)(t + t / (64 / fold) * (64 / fold));
  taps.even = _mm512_loadu_si512(even);
  for (y = 0; y < p->out_height; y++) {
    const uint8_t *from = image + (size_t)y * p->stride_y * p->padded_width * p->channels;
    uint8_t *to = out + (size_t)y * p->out_width * p->channels;
    if (nine && apart)
      qd_depthwise_u8_row(9, 2, p, &taps, fold, from, to);
    else if (nine)
      qd_depthwise_u8_row(9, 1, p, &taps, fold, from, to);
    else if (apart)
      qd_depthwise_u8_row(0, 2, p, &taps, fold, from, to);
    else
      qd_depthwise_u8_row(0, 1, p, &taps, fold, from, to);
  }
}

/* 16 dwords, each of a byte of four rows; `rows` of them are there, the others count as 0. */
QD_INLINE __m512i qd_fours_of_rows(const uint8_t *x, size_t row, int32_t rows, __mmask16 mask) {
  const __m512i order = _mm512_add_epi8(_mm512_set1_epi32(0x30201000),
                                        _mm512_mullo_epi32(_mm512_set1_epi32(0x01010101), QD_COUNT_16));
  __m128i none = _mm_setzero_si128();
  __m512i all = _mm512_castsi128_si512(_mm_maskz_loadu_epi8(mask, x));
  all = _mm512_inserti32x4(all, rows > 1 ? _mm_maskz_loadu_epi8(mask, x + row) : none, 1);
  all = _mm512_inserti32x4(all, rows > 2 ? _mm_maskz_loadu_epi8(mask, x + 2 * row) : none, 2);
  all = _mm512_inserti32x4(all, rows > 3 ? _mm_maskz_loadu_epi8(mask, x + 3 * row) : none, 3);
  return _mm512_permutexvar_epi8(order, all);
}

/* Where the factors of a product lie once they are packed: a step is four places along k. */
typedef struct {
  const int8_t *packed;                   /* b lowered by 128: [block of 16 columns][step][16][4] */
  const int32_t *columns, *totals;        /* what zero points add to each column, sums of each row of a */
  const uint8_t *left;                    /* a */
  size_t row, step;                       /* bytes between rows and steps of a */
  int32_t steps;
} qd_factors;

/* `rows` rows, from the `m`-th, by `many` blocks of 16 columns; rows beyond the end are the last one again. */
QD_INLINE void qd_tile_products(const int rows, const int many, const qd_matmul *p, const qd_factors *f, int32_t m,
                                int32_t block, uint8_t *out) {
  const int8_t *packed = f->packed + (size_t)block * f->steps * 64;
  const __m512 one = _mm512_set1_ps(p->multiplier), multipliers[4] = {one, one, one, one};
  const int32_t steps = f->steps, left = p->n - 16 * block;
  const __mmask64 mask = qd_bytes_mask(left);
  __m512i sums[16];
  const uint8_t *x[8];
  uint8_t *to[8];
  int32_t t;
  int i, j;
  QD_UNROLL(8)
  for (i = 0; i < rows; i++) {
    int32_t at = m + i < p->m ? m + i : p->m - 1;
    x[i] = f->left + at * f->row;
    to[i] = out + (size_t)at * p->n + 16 * block;
    QD_UNROLL(4)
    for (j = 0; j < many; j++)
      sums[i * many + j] = _mm512_add_epi32(_mm512_loadu_si512(f->columns + 16 * (block + j)),
                                            _mm512_mullo_epi32(_mm512_set1_epi32(128 - p->zero_b),
                                                               _mm512_set1_epi32(f->totals[at])));
  }
  for (t = 0; t < steps; t++, packed += 64) {
    __m512i w[4];
    QD_UNROLL(4)
    for (j = 0; j < many; j++) w[j] = _mm512_loadu_si512(packed + (size_t)j * steps * 64);
    QD_UNROLL(8)
    for (i = 0; i < rows; i++) {
      __m512i four = qd_four(x[i] + t * f->step);
      QD_UNROLL(4)
      for (j = 0; j < many; j++) sums[i * many + j] = _mm512_dpbusd_epi32(sums[i * many + j], four, w[j]);
    }
  }
  QD_UNROLL(8)
  for (i = 0; i < rows * many; i += 4) {
    __m512i codes = _mm512_permutexvar_epi32(QD_IN_ORDER, qd_packed_codes(sums + i, multipliers, 0, p->zero_out));
    if (many == 4) {
      _mm512_mask_storeu_epi8(to[i / 4], mask, codes);
    } else {
      _mm_mask_storeu_epi8(to[i], (__mmask16)mask, _mm512_castsi512_si128(codes));
      _mm_mask_storeu_epi8(to[i + 1], (__mmask16)mask, _mm512_extracti32x4_epi32(codes, 1));
      _mm_mask_storeu_epi8(to[i + 2], (__mmask16)mask, _mm512_extracti32x4_epi32(codes, 2));
      _mm_mask_storeu_epi8(to[i + 3], (__mmask16)mask, _mm512_extracti32x4_epi32(codes, 3));
    }
  }
}

/* Pack the second factor, and what each of its columns adds for the zero points. */
static void qd_pack_right(const qd_matmul *p, const uint8_t *b, int32_t steps, int8_t *packed, int32_t *columns) {
  const __m512i ones = _mm512_set1_epi8(1), half = _mm512_set1_epi8(-128);
  int32_t n, t;
  for (n = 0; n < p->n; n += 16) {
    __mmask16 mask = qd_mask(p->n - n);
    __m512i sums = _mm512_set1_epi32(p->k * (128 - p->zero_b));
    for (t = 0; t < steps; t++, packed += 64) {
      int32_t rows = p->k - 4 * t < 4 ? p->k - 4 * t : 4;
      __mmask64 there = (__mmask64)0x1111111111111111u * ((1u << rows) - 1u);
      __m512i fours = qd_fours_of_rows(b + (size_t)4 * t * p->b_k + n, (size_t)p->b_k, rows, mask);
      fours = _mm512_maskz_sub_epi8(there, fours, half);
      sums = _mm512_dpbusd_epi32(sums, ones, fours);
      _mm512_storeu_si512(packed, fours);
    }
    _mm512_storeu_si512(columns + n, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-p->zero_a)));
  }
}

/* Sum the rows of the first factor, and pack it where four places along k are not neighbours. */
static void qd_pack_left(const qd_matmul *p, const uint8_t *a, qd_factors *f, int32_t *totals, uint8_t *packed) {
  const __m512i ones = _mm512_set1_epi8(1);
  const int32_t m16 = (p->m + 15) / 16 * 16;
  int32_t m, k, t;
  f->totals = totals;
  if (p->a_k == 1 && p->k % 4 == 0) {
    f->left = a, f->row = (size_t)p->a_m, f->step = 4;
    for (m = 0; m < p->m; m++) {
      __m512i sums = _mm512_setzero_si512();
      for (k = 0; k < p->k; k += 64)
        sums = _mm512_dpbusd_epi32(sums, _mm512_maskz_loadu_epi8(qd_bytes_mask(p->k - k), a + m * f->row + k), ones);
      totals[m] = _mm512_reduce_add_epi32(sums);
    }
    return;
  }
  f->left = packed, f->row = 4, f->step = (size_t)m16 * 4;
  for (m = 0; m < p->m; m += 16) {
    __mmask16 mask = qd_mask(p->m - m);
    __m512i sums = _mm512_setzero_si512();
    for (t = 0; t < f->steps; t++) {
      int32_t rows = p->k - 4 * t < 4 ? p->k - 4 * t : 4, i;
      const uint8_t *from = a + (size_t)m * p->a_m + (size_t)4 * t * p->a_k;
      uint8_t *to = packed + t * f->step + 4 * m;
      if (p->a_m == 1) {
        _mm512_storeu_si512(to, qd_fours_of_rows(from, (size_t)p->a_k, rows, mask));
      } else {
        memset(to, 0, 64);
        for (i = 0; i < 16 && m + i < p->m; i++)
          for (k = 0; k < rows; k++) to[4 * i + k] = from[(size_t)i * p->a_m + (size_t)k * p->a_k];
      }
      sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(to), ones);
    }
    _mm512_storeu_si512(totals + m, sums);
  }
}

static void matmul_u8_vnni(const qd_matmul *p, const uint8_t *a, const uint8_t *b, uint8_t *out, void *scratch) {
  const int32_t steps = (p->k + 3) / 4, blocks = (p->n + 15) / 16;
  int8_t *packed = (int8_t *)scratch;
  int32_t *columns = (int32_t *)(void *)(packed + (size_t)blocks * steps * 64), *totals = columns + 16 * blocks;
  uint8_t *rows = (uint8_t *)(void *)(totals + (p->m + 15) / 16 * 16);
  qd_factors f = {.packed = packed, .columns = columns, .steps = steps};
  int32_t i, m, block;
  for (i = 0; i < p->batch; i++, out += (size_t)p->m * p->n) {
    qd_pack_right(p, b + (size_t)i * p->b_batch, steps, packed, columns);
    qd_pack_left(p, a + (size_t)i * p->a_batch, &f, totals, rows);
    for (block = 0; block < blocks;) {
      if (blocks - block >= 4) {
        for (m = 0; m < p->m; m += 4) qd_tile_products(4, 4, p, &f, m, block, out);
        block += 4;
      } else {
        for (m = 0; m < p->m; m += 8) qd_tile_products(8, 1, p, &f, m, block, out);
        block++;
      }
    }
  }
}

/* Powers of 64 codes, in the order of qd_interleave; 0 where the mask is. */
QD_INLINE void qd_powers_64(__m512i (*planes)[4], __m512i codes, __mmask64 mask, __m512i *powers) {
  const __mmask64 upper = _mm512_movepi8_mask(codes);
  __m512i bytes[4];
  int i;
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) {
    __m512i low = _mm512_permutex2var_epi8(planes[i][0], codes, planes[i][1]);
    __m512i high = _mm512_permutex2var_epi8(planes[i][2], codes, planes[i][3]);
    bytes[i] = _mm512_maskz_mov_epi8(mask, _mm512_mask_blend_epi8(upper, low, high));
  }
  qd_interleave(bytes, powers);
}

QD_INLINE int32_t qd_most_code(__m512i codes) {
  __m256i half = _mm256_max_epu8(_mm512_castsi512_si256(codes), _mm512_extracti64x4_epi64(codes, 1));
  __m128i most = _mm_max_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  most = _mm_xor_si128(most, _mm_set1_epi8(-1)); /* the least of what is left to 255 */
  return 255 - (_mm_extract_epi16(_mm_minpos_epu16(_mm_min_epu8(most, _mm_srli_epi16(most, 8))), 0) & 255);
}

/* In every lane of 16 bytes or four dwords: the largest byte, and the sum of the dwords. */
QD_INLINE __m512i qd_most_of_lanes(__m512i codes) {
  codes = _mm512_max_epu8(codes, _mm512_shuffle_epi32(codes, _MM_PERM_BADC));
  codes = _mm512_max_epu8(codes, _mm512_shuffle_epi32(codes, _MM_PERM_CDAB));
  codes = _mm512_max_epu8(codes, _mm512_rol_epi32(codes, 16));
  codes = _mm512_max_epu8(codes, _mm512_rol_epi32(codes, 8));
  return codes;
}

QD_INLINE __m512i qd_sums_of_lanes(__m512i x) {
  x = _mm512_add_epi32(x, _mm512_shuffle_epi32(x, _MM_PERM_BADC));
  return _mm512_add_epi32(x, _mm512_shuffle_epi32(x, _MM_PERM_CDAB));
}

/* Rows of 16 codes, four at a time: qd_interleave leaves each in its lane. */
QD_INLINE void qd_softmax_16(__m512i (*planes)[4], const uint8_t *in, uint8_t *out, int32_t rows, float multiplier,
                             int32_t zero) {
  int32_t r;
  for (r = 0; r < rows; r += 4, in += 64, out += 64) {
    const __mmask64 mask = qd_bytes_mask(16 * (rows - r));
    __m512i codes = _mm512_maskz_loadu_epi8(mask, in), powers[4], sums;
    __m512 share, shares[4];
    qd_powers_64(planes, _mm512_sub_epi8(qd_most_of_lanes(codes), codes), ~(__mmask64)0, powers);
    sums = _mm512_add_epi32(_mm512_add_epi32(powers[0], powers[1]), _mm512_add_epi32(powers[2], powers[3]));
    share = _mm512_div_ps(_mm512_set1_ps(multiplier), _mm512_cvtepi32_ps(qd_sums_of_lanes(sums)));
    shares[0] = shares[1] = shares[2] = shares[3] = share;
    _mm512_mask_storeu_epi8(out, mask, qd_packed_codes(powers, shares, 0, zero));
  }
}

static void softmax_u8_vnni(const int32_t *powers, const uint8_t *in, uint8_t *out, int32_t rows, int32_t n,
                            float multiplier, int32_t zero) {
  __m512i planes[4][4];
  int32_t r, i;
  int b, j;
  for (b = 0; b < 4; b++)
    for (j = 0; j < 4; j++) {
      uint8_t bytes[64];
      for (i = 0; i < 64; i += 16)
        _mm_storeu_si128((__m128i *)(void *)(bytes + i),
                         _mm512_cvtepi32_epi8(_mm512_srli_epi32(_mm512_loadu_si512(powers + 64 * j + i), 8 * b)));
      planes[b][j] = _mm512_loadu_si512(bytes);
    }
  if (n == 16) {
    qd_softmax_16(planes, in, out, rows, multiplier, zero);
    return;
  }
  for (r = 0; r < rows; r++, in += n, out += n) {
    __m512i most = _mm512_setzero_si512(), sums = _mm512_setzero_si512(), some[4];
    __m512 share, shares[4];
    for (i = 0; i < n; i += 64)
      most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(qd_bytes_mask(n - i), in + i));
    most = _mm512_set1_epi8((int8_t)qd_most_code(most));
    for (i = 0; i < n; i += 64) {
      __mmask64 mask = qd_bytes_mask(n - i);
      qd_powers_64(planes, _mm512_sub_epi8(most, _mm512_maskz_loadu_epi8(mask, in + i)), mask, some);
      sums = _mm512_add_epi32(sums, _mm512_add_epi32(_mm512_add_epi32(some[0], some[1]),
                                                     _mm512_add_epi32(some[2], some[3])));
    }
    share = _mm512_set1_ps(multiplier / (float)_mm512_reduce_add_epi32(sums));
    shares[0] = shares[1] = shares[2] = shares[3] = share;
    for (i = 0; i < n; i += 64) {
      __mmask64 mask = qd_bytes_mask(n - i);
      if (n > 64) qd_powers_64(planes, _mm512_sub_epi8(most, _mm512_maskz_loadu_epi8(mask, in + i)), mask, some);
      _mm512_mask_storeu_epi8(out + i, mask, qd_packed_codes(some, shares, 0, zero));
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
    __mmask16 mask = qd_mask(n - i);
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
    __mmask16 mask = qd_mask(n - i);
    __m512i x = _mm512_sub_epi32(qd_codes(a + (step_a ? i : 0), step_a, mask), _mm512_set1_epi32(p->zero_a));
    __m512i y = _mm512_sub_epi32(qd_codes(b + (step_b ? i : 0), step_b, mask), _mm512_set1_epi32(p->zero_b));
    __m512 steps = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_mullo_epi32(x, y)), multiplier);
    qd_store_steps(out + i, mask, _mm512_add_ps(steps, zero_out));
  }
}
