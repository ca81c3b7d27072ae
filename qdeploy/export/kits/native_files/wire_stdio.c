/* Photos of any size on standard input, logits on standard output. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
#endif

#include "model_info.h"
#include "photos.h"
#include "wire.h"

const int wire_any_size = 1;

int wire_get(void)
{
#if defined(_WIN32)
    static int binary = 0;

    if (!binary) {
        (void)_setmode(_fileno(stdin), _O_BINARY);
        binary = 1;
    }
#endif
    return getchar();
}

void wire_put(const char *text)
{
    fputs(text, stdout);
    if (strchr(text, '\n') != NULL) { /* the end of an answer */
        fflush(stdout);
    }
}

uint8_t *wire_photo(int32_t width, int32_t height)
{
    static uint8_t *photo = NULL;

    free(photo);
    photo = malloc((size_t)width * (size_t)height * 3);
    return photo;
}

const uint8_t *wire_input(const uint8_t *photo, int32_t width, int32_t height)
{
    static uint8_t rgb[QDEPLOY_IMAGE_BYTES];

    return model_input(photo, width, height, rgb) == 0 ? rgb : NULL;
}
