/* The hot kernels for AArch64 with dot products of bytes (Armv8.2 and later). Part of kernels_body.h. */

QD_INLINE int8x16_t qd_four(const uint8_t *x) {
  uint32_t four;
  memcpy(&four, x, 4);
  return vreinterpretq_s8_u32(vdupq_n_u32(four));
}

/* Four times four results of one pixel: requantized, clamped, rounded half to even, and as bytes. */
QD_INLINE uint8x16_t qd_codes(const int32x4_t *sums, const float *multiplier, const qd_conv_u8 *p) {
  const float32x4_t low = vdupq_n_f32((float)(p->low - p->zero_out)), high = vdupq_n_f32((float)(p->high - p->zero_out));
  int32x4_t codes[4];
  int i;
  QD_UNROLL(4)
  for (i = 0; i < 4; i++) {
    float32x4_t steps = vmulq_f32(vcvtq_f32_s32(sums[i]), vld1q_f32(multiplier + 4 * i));
    codes[i] = vaddq_s32(vcvtnq_s32_f32(vminq_f32(vmaxq_f32(steps, low), high)), vdupq_n_s32(p->zero_out));
  }
  return vcombine_u8(vqmovun_s16(vcombine_s16(vqmovn_s32(codes[0]), vqmovn_s32(codes[1]))),
                     vqmovun_s16(vcombine_s16(vqmovn_s32(codes[2]), vqmovn_s32(codes[3]))));
}

#define QD_PIXELS 4

/* Four pixels by one block of 16 outputs, of which `many` are stored. Bytes are signed here: codes are lowered by 128,
 * and `first` holds that much of the weights' sums. */
QD_INLINE void qd_tile_u8(const qd_conv_u8 *p, const int32x4_t *first, const uint8_t *const *from,
                          const int8_t *weights, const float *multiplier, uint8_t *const *to, int32_t many) {
  const int8x16_t half = vdupq_n_s8(-128);
  int32x4_t sums[QD_PIXELS][4];
  uint8_t made[16];
  int32_t s, q;
  int i, j;
  QD_UNROLL(4)
  for (i = 0; i < QD_PIXELS; i++) {
    QD_UNROLL(4)
    for (j = 0; j < 4; j++) sums[i][j] = first[j];
  }
  for (s = 0; s < p->segments; s++)
    for (q = 0; q < p->steps; q++, weights += 64) {
      int8x16_t w[4];
      QD_UNROLL(4)
      for (j = 0; j < 4; j++) w[j] = vld1q_s8(weights + 16 * j);
      QD_UNROLL(4)
      for (i = 0; i < QD_PIXELS; i++) {
        int8x16_t four = veorq_s8(qd_four(from[i] + p->offsets[s] + 4 * q), half);
        QD_UNROLL(4)
        for (j = 0; j < 4; j++) sums[i][j] = vdotq_s32(sums[i][j], four, w[j]);
      }
    }
  QD_UNROLL(4)
  for (i = 0; i < QD_PIXELS; i++) {
    uint8x16_t codes = qd_codes(sums[i], multiplier, p);
    if (many >= 16) {
      vst1q_u8(to[i], codes);
    } else {
      vst1q_u8(made, codes);
      memcpy(to[i], made, (size_t)many);
    }
  }
}

static void conv_u8_neon(const qd_conv_u8 *p, const uint8_t *in, uint8_t *out, void *scratch) {
  const int32_t steps = p->segments * p->steps, pixels = p->out_height * p->out_width;
  const uint8_t *image = in;
  int32_t g, b, at, i, q;
  if (p->padded_height != p->height || p->padded_width != p->width) {
    qd_padded(in, (uint8_t *)scratch, p->height, p->width, p->channels, p->top, p->left, p->padded_height,
              p->padded_width, p->zero_in);
    image = (const uint8_t *)scratch;
  }
  for (g = 0; g < p->groups; g++)
    for (b = 0; b < p->blocks; b++) {
      const size_t block = (size_t)g * p->blocks + b;
      const int8_t *weights = (const int8_t *)p->weights + block * steps * 64;
      int32x4_t first[4];
      int32_t y = 0, x = 0;
      for (i = 0; i < 4; i++) {
        int32x4_t sums = vdupq_n_s32(0);
        for (q = 0; q < steps; q++) sums = vdotq_s32(sums, vld1q_s8(weights + 64 * q + 16 * i), vdupq_n_s8(1));
        first[i] = vaddq_s32(vshlq_n_s32(sums, 7), vld1q_s32(p->bias + block * 16 + 4 * i));
      }
      for (at = 0; at < pixels; at += QD_PIXELS) {
        const uint8_t *from[QD_PIXELS];
        uint8_t *to[QD_PIXELS];
        for (i = 0; i < QD_PIXELS; i++) {
          from[i] = image + g * p->inputs +
                    ((size_t)y * p->stride_y * p->padded_width + (size_t)x * p->stride_x) * p->channels;
          to[i] = out + ((size_t)y * p->out_width + x) * p->out_channels + g * p->outputs + 16 * b;
          if (at + i + 1 < pixels && ++x == p->out_width) { /* beyond the end the last pixel is made again */
            x = 0;
            y++;
          }
        }
        qd_tile_u8(p, first, from, weights, p->multiplier + block * 16, to, p->outputs - 16 * b);
      }
    }
}

/* Four tables of 64 bytes; an index beyond one of them leaves what is there. */
static void table_neon(const uint8_t *table, const uint8_t *in, uint8_t *out, int32_t n) {
  uint8x16x4_t parts[4];
  int32_t i;
  int j;
  for (j = 0; j < 16; j++) parts[j / 4].val[j % 4] = vld1q_u8(table + 16 * j);
  for (i = 0; i + 16 <= n; i += 16) {
    uint8x16_t codes = vld1q_u8(in + i), made = vqtbl4q_u8(parts[0], codes);
    QD_UNROLL(3)
    for (j = 1; j < 4; j++) made = vqtbx4q_u8(made, parts[j], vsubq_u8(codes, vdupq_n_u8((uint8_t)(64 * j))));
    vst1q_u8(out + i, made);
  }
  for (; i < n; i++) out[i] = table[in[i]];
}
