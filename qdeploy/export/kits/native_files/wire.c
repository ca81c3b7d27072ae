#include "wire.h"

#include <string.h>

#include "model_info.h"

#define MAX_SIDE 16384

static void put_number(uint32_t number)
{
    char digits[11];
    int at = 10;

    digits[at] = '\0';
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    wire_put(digits + at);
}

static void put_bits(float value)
{
    char digits[10] = " ";
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    for (int i = 0; i < 8; ++i) {
        digits[1 + i] = "0123456789abcdef"[bits >> (28 - 4 * i) & 15];
    }
    wire_put(digits);
}

static void say_who(void)
{
    wire_put("qdeploy-native 1 " QDEPLOY_MODEL_SHA256 " ");
    put_number(QDEPLOY_SIZE);
    wire_put(" ");
    put_number(QDEPLOY_CLASSES);
    wire_put(wire_any_size ? " any\n" : " exact\n");
}

static int is_blank(int c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Read a number and the one blank behind it; -1 if there is none. */
static int32_t get_number(void)
{
    int32_t number = 0;
    int c = wire_get();

    while (is_blank(c)) {
        c = wire_get();
    }
    if (c < '0' || c > '9') {
        return -1;
    }
    for (; c >= '0' && c <= '9' && number < 100000; c = wire_get()) {
        number = 10 * number + (c - '0');
    }
    return is_blank(c) ? number : -1;
}

static void answer(const qdeploy_native *net, const uint8_t *input)
{
    static float logits[QDEPLOY_CLASSES], probabilities[QDEPLOY_CLASSES];
    int best = 0;

    qdeploy_native_run(net, input, logits, probabilities);
    for (int i = 1; i < QDEPLOY_CLASSES; ++i) {
        best = logits[i] > logits[best] ? i : best;
    }
    wire_put("logits ");
    put_number((uint32_t)best);
    for (int i = 0; i < QDEPLOY_CLASSES; ++i) {
        put_bits(logits[i]);
    }
    wire_put("\n");
}

/* Read what follows `P6`, and answer. -1 if the input ended within it. */
static int classify_photo(const qdeploy_native *net)
{
    const int32_t width = get_number(), height = get_number(), limit = get_number();
    const uint8_t *input;
    uint8_t *photo;

    if (width < 1 || width > MAX_SIDE || height < 1 || height > MAX_SIDE || limit != 255) {
        wire_put("error no PPM of 8 bits and sides from 1 to 16384\n");
        return 0;
    }
    photo = wire_photo(width, height);
    for (size_t i = 0; i < (size_t)width * (size_t)height * 3; ++i) {
        const int c = wire_get();

        if (c < 0) {
            return -1;
        }
        if (photo != NULL) {
            photo[i] = (uint8_t)c;
        }
    }
    input = photo == NULL ? NULL : wire_input(photo, width, height);
    if (input == NULL) {
        wire_put("error no memory for a photo of this size\n");
        return 0;
    }
    answer(net, input);
    return 0;
}

int wire_serve(const qdeploy_native *net)
{
    int before = 0, c;

    while ((c = wire_get()) >= 0) {
        if (c == '?') {
            say_who();
        } else if (before == 'P' && c == '6' && classify_photo(net) != 0) {
            return 1;
        }
        before = c;
    }
    return 0;
}
