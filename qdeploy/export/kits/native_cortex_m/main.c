/* The model on a microcontroller: photos come in and logits go out over a serial line (wire.h). */
#include "board.h"
#include "model_info.h"
#include "wire.h"

/* All the memory there is beside the stack. */
static uint8_t arena[QDEPLOY_ARENA_BYTES] __attribute__((aligned(64)));
static uint8_t image[QDEPLOY_IMAGE_BYTES];

const int wire_any_size = 0;

int wire_get(void)
{
    return board_get();
}

void wire_put(const char *text)
{
    for (; *text != '\0'; ++text) {
        board_put(*text);
    }
}

uint8_t *wire_photo(int32_t width, int32_t height)
{
    return width == QDEPLOY_SIZE && height == QDEPLOY_SIZE ? image : NULL;
}

const uint8_t *wire_input(const uint8_t *photo, int32_t width, int32_t height)
{
    (void)width, (void)height;
    return photo;
}

int main(void)
{
    qdeploy_native net;

    board_begin();
    if (qdeploy_native_init(&net, arena, sizeof arena, "c99") != 0) {
        wire_put("error the arena does not fit\n");
        return 1;
    }
    return wire_serve(&net);
}
