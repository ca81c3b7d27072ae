/* Photos of any size with the logits that the model must give for them. */
#ifndef QDEPLOY_PHOTOS_H
#define QDEPLOY_PHOTOS_H

#include <stddef.h>
#include <stdint.h>

typedef struct Photos {
    uint32_t count;
    const uint8_t *sizes;  /* [count] widths and heights, little-endian numbers of four bytes */
    const uint8_t *pixels; /* one photo after the other */
    const uint8_t *logits; /* [count][QDEPLOY_CLASSES] little-endian floats */
} Photos;

/* Parse a file of photos; the result points into `file`. 0 is success; -1 has been explained on stderr. */
int parse_photos(Photos *photos, const uint8_t *file, size_t bytes, const char *path);

/* Make the model's input of a photo: QDEPLOY_IMAGE_BYTES bytes. -1 if there is too little memory. */
int model_input(const uint8_t *photo, int32_t width, int32_t height, uint8_t *made);

#endif
