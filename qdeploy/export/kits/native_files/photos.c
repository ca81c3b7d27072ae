#include "photos.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "files.h"
#include "model_info.h"
#include "qdeploy_resize.h"

#define HEADER_BYTES 20
#define MAX_PHOTOS 1024

int parse_photos(Photos *photos, const uint8_t *file, size_t bytes, const char *path)
{
    size_t at = HEADER_BYTES;

    if (bytes < HEADER_BYTES || memcmp(file, "QDPHOT1", 8) != 0) {
        fprintf(stderr, "%s: is no file of photos\n", path);
        return -1;
    }
    photos->count = little_endian(file + 8);
    photos->sizes = file + at;
    if (little_endian(file + 12) == QDEPLOY_SIZE && little_endian(file + 16) == QDEPLOY_CLASSES &&
        photos->count >= 1 && photos->count <= MAX_PHOTOS && (bytes - at) / 8 >= photos->count) {
        at += 8 * (size_t)photos->count;
        photos->pixels = file + at;
        for (uint32_t i = 0; i < photos->count; ++i) {
            const uint32_t width = little_endian(photos->sizes + 8 * i), height = little_endian(photos->sizes + 8 * i + 4);

            if (width < 1 || width > QDEPLOY_MAX_SIDE || height < 1 || height > QDEPLOY_MAX_SIDE ||
                (bytes - at) / 3 / width < height) {
                at = 0;
                break;
            }
            at += (size_t)width * height * 3;
        }
        photos->logits = file + at;
        if (at != 0 && bytes - at == 4 * (size_t)QDEPLOY_CLASSES * photos->count) {
            return 0;
        }
    }
    fprintf(stderr, "%s: is damaged, or of another model\n", path);
    return -1;
}

int model_input(const uint8_t *photo, int32_t width, int32_t height, uint8_t *made)
{
    const size_t bytes = qdeploy_resize_bytes(width, height, QDEPLOY_SIZE, QDEPLOY_FILTER);
    void *work = malloc(bytes);
    int failed = 1;

    if (work != NULL) {
        failed = qdeploy_resize(photo, width, height, made, QDEPLOY_SIZE, QDEPLOY_FILTER, work, bytes);
    }
    free(work);
    return failed ? -1 : 0;
}
