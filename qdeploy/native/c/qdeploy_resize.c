#include "qdeploy_resize.h"

#include <string.h>

#if defined(__FAST_MATH__)
#error "-ffast-math changes the pixels: build without it"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error "doubles must be computed in double precision: on 32-bit x86 build with -msse2 -mfpmath=sse"
#endif

#define PRECISION 22 /* bits of a weight behind the point: 32, less 8 of a pixel and 2 to spare */

/* One direction: `made` pixels from the part [begin, begin + length) of `given`. */
typedef struct {
  double begin, scale, spread, support;
  int32_t given, most; /* most weights of a pixel */
  int filter;
} Axis;

static double weight(int filter, double x) {
  if (x < 0.0) x = -x;
  if (filter == QDEPLOY_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0;
  return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
}

static Axis axis_of(int32_t given, double begin, int32_t length, int32_t made, int filter) {
  Axis axis;
  axis.begin = begin;
  axis.scale = (double)length / made;
  axis.spread = axis.scale < 1.0 ? 1.0 : axis.scale;
  axis.support = (double)filter * axis.spread;
  axis.given = given;
  axis.filter = filter;
  axis.most = (int32_t)axis.support;
  axis.most += axis.most < axis.support;
  axis.most = 2 * axis.most + 1;
  return axis;
}

/* The weights of one pixel; returns how many, and where the first applies. */
static int32_t weights_of(const Axis *axis, int32_t pixel, int32_t *weights, int32_t *first) {
  const double centre = axis->begin + (pixel + 0.5) * axis->scale, narrow = 1.0 / axis->spread;
  int32_t low = (int32_t)(centre - axis->support + 0.5), high = (int32_t)(centre + axis->support + 0.5), i;
  double total = 0.0;
  if (low < 0) low = 0;
  if (high > axis->given) high = axis->given;
  for (i = low; i < high; i++) total += weight(axis->filter, (i - centre + 0.5) * narrow);
  for (i = low; i < high; i++) {
    double share = weight(axis->filter, (i - centre + 0.5) * narrow);
    if (total != 0.0) share /= total;
    share *= 1 << PRECISION;
    weights[i - low] = (int32_t)(share < 0.0 ? share - 0.5 : share + 0.5);
  }
  *first = low;
  return high - low;
}

static uint8_t pixel_of(int32_t sum) {
  if (sum < 0) return 0;
  sum >>= PRECISION;
  return (uint8_t)(sum > 255 ? 255 : sum);
}

/* Both directions of a photo. Of a tall one Python cuts a part out of the rows first, and counts from there. */
static void axes_of(int32_t width, int32_t height, int32_t size, int filter, Axis *across, Axis *down, int32_t *cut) {
  const int32_t side = width < height ? width : height;
  double top = (height - side) / 2.0, wide = (double)side / size;
  int32_t first = 0, last = height;
  if (height > width) {
    double margin = 2.0 * (wide > 1.0 ? wide : 1.0) + 1.0;
    if (top - margin > 0.0) first = (int32_t)(top - margin);
    if (top + side + margin + 1.0 < height) last = (int32_t)(top + side + margin) + 1;
  }
  *across = axis_of(width, (width - side) / 2.0, side, size, filter);
  *down = axis_of(last - first, top - first, side, size, filter);
  *cut = first;
}

/* In the working memory: for each column its first pixel, its count and its weights; the weights of a row; and the last
 * rows whose columns are made, as many as a row of the result needs. */
size_t qdeploy_resize_bytes(int32_t width, int32_t height, int32_t size, int filter) {
  Axis across, down;
  int32_t cut, sides[3], i;
  sides[0] = width, sides[1] = height, sides[2] = size;
  for (i = 0; i < 3; i++)
    if (sides[i] < 1 || sides[i] > QDEPLOY_MAX_SIDE) return 0;
  if (filter != QDEPLOY_BILINEAR && filter != QDEPLOY_BICUBIC) return 0;
  axes_of(width, height, size, filter, &across, &down, &cut);
  return sizeof(int32_t) * ((size_t)size * (2 + (size_t)across.most) + (size_t)down.most) +
         (size_t)down.most * (size_t)size * 3;
}

int qdeploy_resize(const uint8_t *photo, int32_t width, int32_t height, uint8_t *made, int32_t size, int filter,
                   void *work, size_t bytes) {
  const size_t need = qdeploy_resize_bytes(width, height, size, filter), row = (size_t)size * 3;
  int32_t *firsts = (int32_t *)work, *counts, *columns, *rows;
  int32_t cut, x, y, i, c, next = 0;
  uint8_t *ring;
  Axis across, down;
  if (need == 0 || bytes < need) return 1;
  axes_of(width, height, size, filter, &across, &down, &cut);
  counts = firsts + size;
  columns = counts + size;
  rows = columns + (size_t)size * across.most;
  ring = (uint8_t *)(rows + down.most);
  for (x = 0; x < size; x++) counts[x] = weights_of(&across, x, columns + (size_t)x * across.most, &firsts[x]);
  for (y = 0; y < size; y++) {
    int32_t first, count = weights_of(&down, y, rows, &first);
    for (next = next < first ? first : next; next < first + count; next++) {
      const uint8_t *from = photo + ((size_t)cut + next) * width * 3;
      uint8_t *to = ring + (next % down.most) * row;
      for (x = 0; x < size; x++)
        for (c = 0; c < 3; c++) {
          const uint8_t *pixel = from + (size_t)firsts[x] * 3 + c;
          int32_t sum = 1 << (PRECISION - 1);
          for (i = 0; i < counts[x]; i++) sum += pixel[(size_t)i * 3] * columns[(size_t)x * across.most + i];
          to[x * 3 + c] = pixel_of(sum);
        }
    }
    for (x = 0; x < size * 3; x++) {
      int32_t sum = 1 << (PRECISION - 1);
      for (i = 0; i < count; i++) sum += ring[((first + i) % down.most) * row + x] * rows[i];
      made[y * row + x] = pixel_of(sum);
    }
  }
  return 0;
}
