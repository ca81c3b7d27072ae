/* The hot kernels for AVX-512 with VNNI and VBMI (Intel from Ice Lake, AMD from Zen 4). Part of kernels_body.h. */

/* What a tile makes: the segments that it needs, its first sums, and which of its outputs are stored. */
typedef struct {
  int32_t bias[64] __attribute__((aligned(64)));
  int32_t first, end;
  __mmask64 mask;
} qd_span;

/* Where the pixels of a tile are read and written. */
typedef struct {
  const uint8_t *from;
  uint8_t *to;
  size_t pixel, out_pixel; /* to the next one, if they are neighbours */
  const uint8_t *scattered[8];
  uint8_t *places[8];
} qd_pixels;

QD_INLINE __mmask64 qd_bytes_mask(int32_t bytes) {
  return bytes >= 64 ? ~(__mmask64)0 : bytes <= 0 ? 0 : ((__mmask64)1 << bytes) - 1;
}

/* The same for 16 values, of which some are left. */
QD_INLINE __mmask16 qd_mask(int32_t left) { return left >= 16 ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1u); }

QD_INLINE __m512i qd_four(const uint8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

/* 0 to 15, and the dwords of four packed vectors of 16 in the order of their numbers. */
#define QD_COUNT_16 _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
#define QD_IN_ORDER _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)

/* Sums times multipliers, rounded and clamped: four times 16 results, as 64 codes; lane by lane four of each. Packing
 * clamps to all codes; only what is beyond 2^31, and so not `bounded`, must be clamped before it is rounded. */
QD_INLINE __m512i qd_packed_codes(const __m512i *sums, const __m512 *multipliers, int bounded, int32_t zero_out) {
  const __m512i zero = _mm512_set1_epi16((int16_t)zero_out);
  __m512 steps[4];
  __m512i codes[4];
  int i;
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) steps[i] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i]), multipliers[i]);
  if (!bounded) {
    QD_UNROLL(4)
    for (i = 0; i < 4; i++) steps[i] = _mm512_min_ps(steps[i], _mm512_set1_ps(255.0f));
  }
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) codes[i] = _mm512_cvtps_epi32(steps[i]);
  codes[0] = _mm512_adds_epi16(_mm512_packs_epi32(codes[0], codes[1]), zero);
  codes[1] = _mm512_adds_epi16(_mm512_packs_epi32(codes[2], codes[3]), zero);
  return _mm512_packus_epi16(codes[0], codes[1]);
}

/* The same within the limits of a convolution. */
QD_INLINE __m512i qd_limited(__m512i codes, int32_t low, int32_t high) {
  return _mm512_min_epu8(_mm512_max_epu8(codes, _mm512_set1_epi8((int8_t)low)), _mm512_set1_epi8((int8_t)high));
}

/* Weights are asked for so many bytes before they are needed: those of a model are more than the nearest caches hold. */
#define QD_AHEAD 2048

/* `pixels` pixels by `many` blocks of 16 outputs: neighbours in a row, or `scattered`. */
QD_INLINE void qd_tile_u8(const int pixels, const int many, const int scattered, const qd_conv_u8 *p,
                          const qd_span *span, size_t block, const qd_pixels *at) {
  const size_t block_bytes = (size_t)p->segments * p->steps * 64;
  const int8_t *weights = (const int8_t *)p->weights + block * block_bytes + (size_t)span->first * p->steps * 64;
  const float *multiplier = p->multiplier + block * 16;
  const int32_t steps = p->steps, end = span->end;
  const int32_t *offsets = p->offsets;
  __m512i sums[4 * 8 + 3];
  const uint8_t *x[8];
  uint8_t *to[8];
  int32_t s, q;
  int i, j;
  QD_UNROLL(4)
  for (j = 0; j < many; j++) sums[j] = _mm512_load_si512(span->bias + 16 * j);
  QD_UNROLL(32)
  for (i = many; i < pixels * many; i++) sums[i] = sums[i - many];
  for (s = span->first; s < end; s++) {
    QD_UNROLL(8)
    for (i = 0; i < pixels; i++) x[i] = (scattered ? at->scattered[i] : at->from + i * at->pixel) + offsets[s];
    for (q = 0; q < steps; q++, weights += 64) {
      __m512i w[4];
      QD_UNROLL(4)
      for (j = 0; j < many; j++) {
        w[j] = _mm512_loadu_si512(weights + j * block_bytes);
        _mm_prefetch((const char *)weights + j * block_bytes + QD_AHEAD, _MM_HINT_T0);
      }
      QD_UNROLL(8)
      for (i = 0; i < pixels; i++) {
        __m512i four = qd_four(x[i] + 4 * q);
        QD_UNROLL(4)
        for (j = 0; j < many; j++) sums[i * many + j] = _mm512_dpbusd_epi32(sums[i * many + j], four, w[j]);
      }
    }
  }
  QD_UNROLL(4)
  for (i = pixels * many; i < 4; i++) sums[i] = sums[0];
  QD_UNROLL(8)
  for (i = 0; i < pixels; i++) to[i] = scattered ? at->places[i] : at->to + i * at->out_pixel;
  QD_UNROLL(8)
  for (i = 0; i < pixels * many; i += 4) {
    __m512 multipliers[4];
    __m512i codes;
    QD_UNROLL(4)
    for (j = 0; j < 4; j++) multipliers[j] = _mm512_loadu_ps(multiplier + (i + j) % many * 16);
    codes = qd_limited(qd_packed_codes(sums + i, multipliers, p->bounded, p->zero_out), p->low, p->high);
    codes = _mm512_permutexvar_epi32(QD_IN_ORDER, codes);
    if (many == 4) {
      _mm512_mask_storeu_epi8(to[i / 4], span->mask, codes);
    } else if (many == 2) {
      _mm256_mask_storeu_epi8(to[i / 2], (__mmask32)span->mask, _mm512_castsi512_si256(codes));
      _mm256_mask_storeu_epi8(to[i / 2 + 1], (__mmask32)span->mask, _mm512_extracti64x4_epi64(codes, 1));
    } else {
      _mm_mask_storeu_epi8(to[i], (__mmask16)span->mask, _mm512_castsi512_si128(codes));
      if (pixels == 1) return;
      _mm_mask_storeu_epi8(to[i + 1], (__mmask16)span->mask, _mm512_extracti32x4_epi32(codes, 1));
      _mm_mask_storeu_epi8(to[i + 2], (__mmask16)span->mask, _mm512_extracti32x4_epi32(codes, 2));
      _mm_mask_storeu_epi8(to[i + 3], (__mmask16)span->mask, _mm512_extracti32x4_epi32(codes, 3));
    }
  }
}

#define QD_TILE(pixels, many)                                                                         \
  static __attribute__((noinline)) void qd_tile_##pixels##_##many(                                   \
      const qd_conv_u8 *p, const qd_span *span, size_t block, const qd_pixels *at, int scattered) {  \
    if (scattered)                                                                                   \
      qd_tile_u8(pixels, many, 1, p, span, block, at);                                               \
    else                                                                                             \
      qd_tile_u8(pixels, many, 0, p, span, block, at);                                               \
  }
QD_TILE(8, 2)
QD_TILE(8, 1)
QD_TILE(4, 4)
QD_TILE(4, 1)
QD_TILE(1, 4)
QD_TILE(1, 1)
#undef QD_TILE

/* What the tiles of a row of results need; of row -1, whatever row could need. */
static void qd_span_of(const qd_conv_u8 *p, int32_t y, size_t block, int many, qd_span *span) {
  span->first = 0;
  span->end = p->segments;
  if (p->border && y >= 0) qd_inside(p, y, &span->first, &span->end);
  qd_first_sums(p, span->first, span->end, block, 16 * many, span->bias);
}

/* Few outputs of pixels with few channels: here the lanes are 16 neighbouring pixels, whose windows lie in 128 bytes,
 * and each output is a vector. */
#define QD_NARROW 8

typedef struct {
  __m512i windows;  /* where the first four bytes of each pixel's window are */
  __m512i order[2]; /* where the first and the second 64 results are among those of two times four outputs */
  int32_t pixel;    /* bytes from one to the next */
} qd_narrow;

static qd_narrow qd_narrow_of(const qd_conv_u8 *p) {
  qd_narrow made;
  uint8_t windows[64], order[128];
  int32_t x, o, i;
  made.pixel = p->stride_x * p->channels;
  for (i = 0; i < 64; i++) windows[i] = (uint8_t)(i / 4 * made.pixel + i % 4);
  for (x = 0, i = 0; x < 16; x++)
    for (o = 0; o < p->outputs; o++) order[i++] = (uint8_t)(o / 4 * 64 + x / 4 * 16 + o % 4 * 4 + x % 4);
  while (i < 128) order[i++] = 0;
  made.windows = _mm512_loadu_si512(windows);
  made.order[0] = _mm512_loadu_si512(order);
  made.order[1] = _mm512_loadu_si512(order + 64);
  return made;
}

/* Up to 16 pixels by 4 or 8 outputs. */
QD_INLINE void qd_narrow_16(const int outputs, const qd_conv_u8 *p, const qd_span *span, const qd_narrow *narrow,
                            const uint8_t *from, int32_t pixels, uint8_t *to) {
  const int32_t bytes = (pixels - 1) * narrow->pixel + 4 * p->steps, made = pixels * p->outputs;
  const __mmask64 mask = qd_bytes_mask(bytes), behind = qd_bytes_mask(bytes - 64);
  const int8_t *weights = (const int8_t *)p->weights + (size_t)span->first * p->steps * 64;
  __m512i sums[QD_NARROW], packed[2];
  __m512 multipliers[4];
  int32_t s, q;
  int i, o;
  QD_UNROLL(8)
  for (o = 0; o < outputs; o++) sums[o] = _mm512_set1_epi32(span->bias[o]);
  for (s = span->first; s < span->end; s++) {
    __m512i low = _mm512_maskz_loadu_epi8(mask, from + p->offsets[s]), windows = narrow->windows;
    __m512i high = behind ? _mm512_maskz_loadu_epi8(behind, from + p->offsets[s] + 64) : low;
    for (q = 0; q < p->steps; q++, weights += 64) {
      __m512i fours = _mm512_permutex2var_epi8(low, windows, high);
      windows = _mm512_add_epi8(windows, _mm512_set1_epi8(4));
      QD_UNROLL(8)
      for (o = 0; o < outputs; o++)
        sums[o] = _mm512_dpbusd_epi32(sums[o], fours, qd_four((const uint8_t *)weights + 4 * o));
    }
  }
  QD_UNROLL(2)
  for (i = 0; i < outputs / 4; i++) {
    QD_UNROLL(4)
    for (o = 0; o < 4; o++) multipliers[o] = _mm512_set1_ps(p->multiplier[4 * i + o]);
    packed[i] = qd_limited(qd_packed_codes(sums + 4 * i, multipliers, p->bounded, p->zero_out), p->low, p->high);
  }
  if (outputs == 4) packed[1] = packed[0];
  _mm512_mask_storeu_epi8(to, qd_bytes_mask(made), _mm512_permutex2var_epi8(packed[0], narrow->order[0], packed[1]));
  if (made > 64)
    _mm512_mask_storeu_epi8(to + 64, qd_bytes_mask(made - 64),
                            _mm512_permutex2var_epi8(packed[0], narrow->order[1], packed[1]));
}

static void qd_narrow_conv(const qd_conv_u8 *p, const uint8_t *image, int32_t width, uint8_t *out) {
  const qd_narrow narrow = qd_narrow_of(p);
  const int32_t rows = p->out_height * p->out_width / width;
  qd_span span;
  int32_t y, x;
  for (y = 0; y < rows; y++) {
    const uint8_t *from = image + (size_t)y * p->stride_y * p->padded_width * p->channels;
    qd_span_of(p, y, 0, 1, &span);
    for (x = 0; x < width; x += 16, out += 16 * p->outputs) {
      int32_t pixels = width - x < 16 ? width - x : 16;
      if (p->outputs > 4)
        qd_narrow_16(8, p, &span, &narrow, from + x * narrow.pixel, pixels, out);
      else
        qd_narrow_16(4, p, &span, &narrow, from + x * narrow.pixel, pixels, out);
    }
    out -= (size_t)(x - width) * p->outputs;
  }
}

static void conv_u8_vnni(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const int bare = p->padded_height == p->height && p->padded_width == p->width;
  const int one_row = bare && p->segments == 1 && p->stride_y == 1 && p->stride_x == 1 && p->out_width == p->width;
  const int32_t pixels = p->out_height * p->out_width, width = one_row ? pixels : p->out_width;
  const int scattered = width % 4 != 0;
  const int tall = width % 8 == 0 ? 8 : !scattered ? 4 : pixels >= 5 ? 8 : pixels >= 2 ? 4 : 1;
  const int wide = tall == 8 ? 2 : 4;
  const size_t row = (size_t)p->stride_y * p->padded_width * p->channels;
  const uint8_t *image = in;
  qd_pixels at = {.pixel = (size_t)p->stride_x * p->channels, .out_pixel = (size_t)p->out_channels};
  int32_t g, b, first, i;
  if (!bare) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  if (p->groups == 1 && p->outputs <= QD_NARROW && 15 * at.pixel + 4 * p->steps <= 128) {
    qd_narrow_conv(p, image, width, out);
    return;
  }
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks;) {
      const int many = p->blocks - b >= wide ? wide : 1;
      const size_t block = (size_t)g * p->blocks + b;
      const int32_t last = p->outputs - 16 * b;
      const uint8_t *source = image + g * p->inputs;
      uint8_t *target = out + g * p->outputs + 16 * b;
      int32_t y = 0, x = 0;
      qd_span span;
      span.mask = qd_bytes_mask(last);
      for (first = 0; first < pixels; first += tall) {
        if (first == 0 || (x == 0 && !scattered)) qd_span_of(p, scattered ? -1 : y, block, many, &span);
        if (!scattered) {
          at.from = source + y * row + x * at.pixel;
          at.to = target + first * at.out_pixel;
          if ((x += tall) == width) x = 0, y++;
        } else {
          for (i = 0; i < tall; i++) { /* beyond the end the last pixel is made again */
            int32_t pixel = first + i < pixels ? first + i : pixels - 1;
            at.scattered[i] = source + pixel / width * row + pixel % width * at.pixel;
            at.places[i] = target + pixel * at.out_pixel;
          }
        }
        if (tall == 8 && many == 2)
          qd_tile_8_2(p, &span, block, &at, scattered);
        else if (tall == 8)
          qd_tile_8_1(p, &span, block, &at, scattered);
        else if (tall == 4 && many == 4)
          qd_tile_4_4(p, &span, block, &at, scattered);
        else if (tall == 4)
          qd_tile_4_1(p, &span, block, &at, scattered);
        else if (many == 4)
          qd_tile_1_4(p, &span, block, &at, scattered);
        else
          qd_tile_1_1(p, &span, block, &at, scattered);
      }
      b += many;
    }
}

/* A table of 256 bytes in four registers. */
typedef struct {
  __m512i quarters[4];
} qd_entries;

QD_INLINE qd_entries qd_entries_of(const uint8_t *table) {
  qd_entries made;
  int i;
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) made.quarters[i] = _mm512_loadu_si512(table + 64 * i);
  return made;
}

QD_INLINE __m512i qd_looked_up(const qd_entries *t, __m512i codes) {
  __m512i low = _mm512_permutex2var_epi8(t->quarters[0], codes, t->quarters[1]);
  __m512i high = _mm512_permutex2var_epi8(t->quarters[2], codes, t->quarters[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
}

static void table_vnni(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n) {
  const qd_entries entries = qd_entries_of(table);
  int32_t i;
  for (i = 0; i < n; i += 64) {
    __mmask64 mask = qd_bytes_mask(n - i);
    _mm512_mask_storeu_epi8(out + i, mask, qd_looked_up(&entries, _mm512_maskz_loadu_epi8(mask, in + i)));
  }
}

/* Neighbouring bytes are of different channels, each with its table. */
QD_INLINE void qd_tables_of(const int channels, const uint8_t *tables, const uint8_t *in, uint8_t *out, int32_t n) {
  qd_entries entries[QD_MAX_TABLES];
  __mmask64 own = 0; /* the bytes of the channel that a vector begins with */
  int32_t i, first = 0;
  int c;
  QD_UNROLL(4)
  for (c = 0; c < channels; c++) entries[c] = qd_entries_of(tables + 256 * c);
  for (i = 0; i < 64; i += channels) own |= (__mmask64)1 << i;
  for (i = 0; i < n; i += 64, first = (first + 64) % channels) {
    __mmask64 mask = qd_bytes_mask(n - i);
    __m512i codes = _mm512_maskz_loadu_epi8(mask, in + i), made = _mm512_setzero_si512();
    QD_UNROLL(4)
    for (c = 0; c < channels; c++) {
      const int32_t begin = (c + channels - first) % channels; /* where its bytes begin here */
      made = _mm512_mask_mov_epi8(made, own << begin, qd_looked_up(&entries[c], codes));
    }
    _mm512_mask_storeu_epi8(out + i, mask, made);
  }
}

static void qd_tables_mixed(const uint8_t *tables, const uint8_t *in, uint8_t *out, int32_t n, int32_t channels) {
  if (channels == 2)
    qd_tables_of(2, tables, in, out, n);
  else if (channels == 3)
    qd_tables_of(3, tables, in, out, n);
  else
    qd_tables_of(4, tables, in, out, n);
}

