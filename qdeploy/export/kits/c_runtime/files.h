/* Files in: a whole file, an image of the model's size, the goldens. 0 is success; -1 has been explained on stderr. */
#ifndef QDEPLOY_FILES_H
#define QDEPLOY_FILES_H

#include <stddef.h>
#include <stdint.h>

/* Read a whole file into memory that the caller frees; NULL after a failure. */
uint8_t *read_file(const char *path, size_t *bytes);

/* Find the pixels of a photo and its size: a binary PPM (P6, 8 bits), or nothing but QDEPLOY_IMAGE_BYTES bytes of pixels
 * of the model's size.
 *
 * The result points into `file`; NULL if it is no such photo. */
const uint8_t *photo_pixels(const uint8_t *file, size_t bytes, const char *path, long *width, long *height);

/* Find the pixels of an image file: a binary PPM (P6, 8 bits), or nothing but QDEPLOY_IMAGE_BYTES bytes of pixels.
 *
 * The result points into `file`; NULL if it is no such image or has another size than the model's. */
const uint8_t *image_pixels(const uint8_t *file, size_t bytes, const char *path);

/* Read a number of four bytes. */
uint32_t little_endian(const uint8_t *bytes);
float float_from(const uint8_t *bytes);

/* Images and the logits that the model gave for them when it was exported. */
typedef struct Goldens {
    uint32_t count;
    float min_sqnr_db;      /* least agreement of a sound runtime, in decibels */
    const uint8_t *images;  /* [count][QDEPLOY_IMAGE_BYTES] */
    const uint8_t *logits;  /* [count][QDEPLOY_CLASSES] little-endian floats: read them with golden_logit */
} Goldens;

/* Parse a goldens file; the result points into `file`. */
int parse_goldens(Goldens *goldens, const uint8_t *file, size_t bytes, const char *path);

/* Give one of the count * QDEPLOY_CLASSES logits. */
float golden_logit(const Goldens *goldens, size_t index);

#endif
