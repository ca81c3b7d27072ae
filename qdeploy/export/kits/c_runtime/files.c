#include "files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_info.h"

#define GOLDENS_HEADER_BYTES 24
#define MAX_FILE_BYTES 0x7fffffffL
#define MAX_GOLDENS 1024
#define MAX_SIDE 16384

uint8_t *read_file(const char *path, size_t *bytes)
{
    uint8_t *data = NULL;
    long length = -1;
    FILE *stream = fopen(path, "rb");

    if (stream == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return NULL;
    }
    if (fseek(stream, 0, SEEK_END) == 0) {
        length = ftell(stream);
    }
    if (length > 0 && length < MAX_FILE_BYTES && fseek(stream, 0, SEEK_SET) == 0) {
        data = malloc((size_t)length);
    }
    if (data != NULL && fread(data, 1, (size_t)length, stream) != (size_t)length) {
        free(data);
        data = NULL;
    }
    fclose(stream);
    if (data == NULL) {
        fprintf(stderr, "%s: is empty, no regular file, or too large to read\n", path);
        return NULL;
    }
    *bytes = (size_t)length;
    return data;
}

static int is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}

/* Read a number of a PPM header, after blanks and comments; -1 if there is none. */
static long header_number(const uint8_t *file, size_t bytes, size_t *at)
{
    long number = -1;

    while (*at < bytes && (is_space(file[*at]) || file[*at] == '#')) {
        if (file[*at] == '#') {
            while (*at < bytes && file[*at] != '\n') {
                ++*at;
            }
        } else {
            ++*at;
        }
    }
    while (*at < bytes && file[*at] >= '0' && file[*at] <= '9' && number < 100000) {
        number = (number < 0 ? 0 : number * 10) + (file[*at] - '0');
        ++*at;
    }
    return number;
}

const uint8_t *photo_pixels(const uint8_t *file, size_t bytes, const char *path, long *width, long *height)
{
    size_t at = 2;
    long limit;

    if (bytes == QDEPLOY_IMAGE_BYTES) {
        *width = *height = QDEPLOY_SIZE;
        return file;
    }
    if (bytes < 2 || memcmp(file, "P6", 2) != 0) {
        fprintf(stderr, "%s: is neither a binary PPM nor %d bytes of pixels; ffmpeg -i PHOTO photo.ppm makes one\n", path,
                QDEPLOY_IMAGE_BYTES);
        return NULL;
    }
    *width = header_number(file, bytes, &at);
    *height = header_number(file, bytes, &at);
    limit = header_number(file, bytes, &at);
    if (*width < 1 || *width > MAX_SIDE || *height < 1 || *height > MAX_SIDE || limit != 255) {
        fprintf(stderr, "%s: is %ld x %ld with values to %ld; sides from 1 to %d and values to 255 are read\n", path,
                *width, *height, limit, MAX_SIDE);
        return NULL;
    }
    ++at; /* the one blank before the pixels */
    if (at > bytes || (bytes - at) / 3 / (size_t)*width < (size_t)*height) {
        fprintf(stderr, "%s: is cut short\n", path);
        return NULL;
    }
    return file + at;
}

const uint8_t *image_pixels(const uint8_t *file, size_t bytes, const char *path)
{
    long width, height;
    const uint8_t *pixels = photo_pixels(file, bytes, path, &width, &height);

    if (pixels != NULL && (width != QDEPLOY_SIZE || height != QDEPLOY_SIZE)) {
        fprintf(stderr, "%s: is %ld x %ld; the model takes %d x %d\n", path, width, height, QDEPLOY_SIZE, QDEPLOY_SIZE);
        return NULL;
    }
    return pixels;
}

uint32_t little_endian(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

float float_from(const uint8_t *bytes)
{
    const uint32_t bits = little_endian(bytes);
    float value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

int parse_goldens(Goldens *goldens, const uint8_t *file, size_t bytes, const char *path)
{
    size_t each = QDEPLOY_IMAGE_BYTES + 4 * (size_t)QDEPLOY_CLASSES;

    if (bytes < GOLDENS_HEADER_BYTES || memcmp(file, "QDGOLD1", 8) != 0) {
        fprintf(stderr, "%s: is no goldens file\n", path);
        return -1;
    }
    goldens->count = little_endian(file + 8);
    goldens->min_sqnr_db = float_from(file + 20);
    if (little_endian(file + 12) != QDEPLOY_SIZE || little_endian(file + 16) != QDEPLOY_CLASSES ||
        goldens->count == 0 || goldens->count > MAX_GOLDENS ||
        bytes - GOLDENS_HEADER_BYTES != goldens->count * each) {
        fprintf(stderr, "%s: is damaged, or of another model\n", path);
        return -1;
    }
    goldens->images = file + GOLDENS_HEADER_BYTES;
    goldens->logits = goldens->images + goldens->count * (size_t)QDEPLOY_IMAGE_BYTES;
    return 0;
}

float golden_logit(const Goldens *goldens, size_t index)
{
    return float_from(goldens->logits + 4 * index);
}
