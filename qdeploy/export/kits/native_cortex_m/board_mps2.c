/* The first serial line of Arm's MPS2 boards, which QEMU emulates (mps2-an386: Cortex-M4, mps2-an500: Cortex-M7). */
#include "board.h"

#include <stdint.h>

typedef struct {
    volatile uint32_t data, state, control, interrupt, divisor;
} Uart;

#define UART ((Uart *)0x40004000u)

enum { FULL_TO_SEND = 1, FULL_TO_READ = 2, SEND = 1, READ = 2 };

void board_begin(void)
{
    UART->divisor = 217; /* 115200 baud at 25 MHz */
    UART->control = SEND | READ;
}

int board_get(void)
{
    while (!(UART->state & FULL_TO_READ)) {
    }
    return (int)(UART->data & 255u);
}

void board_put(char c)
{
    while (UART->state & FULL_TO_SEND) {
    }
    UART->data = (uint8_t)c;
}
