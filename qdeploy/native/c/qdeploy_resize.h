/* A model's input from a photo: the centre square, resized with antialiasing, bit for bit as qdeploy's Python does it
 * with Pillow. Doubles make the weights, once for an image; pixels are summed in whole numbers of 32 bits.
 */
#ifndef QDEPLOY_RESIZE_H
#define QDEPLOY_RESIZE_H

#include <stddef.h>
#include <stdint.h>

#define QDEPLOY_MAX_SIDE 16384

enum { QDEPLOY_BILINEAR = 1, QDEPLOY_BICUBIC = 2 };

/* Bytes of working memory, aligned to 4, that a photo needs; 0 if a side is below 1 or above QDEPLOY_MAX_SIDE. */
size_t qdeploy_resize_bytes(int32_t width, int32_t height, int32_t size, int filter);

/* Make uint8 [size][size][3] of uint8 [height][width][3], RGB. Returns 0; 1 if a side or the filter is out of range, or
 * the working memory too small. */
int qdeploy_resize(const uint8_t *photo, int32_t width, int32_t height, uint8_t *made, int32_t size, int filter,
                   void *work, size_t bytes);

#endif
