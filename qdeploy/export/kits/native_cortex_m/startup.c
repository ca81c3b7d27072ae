/* From reset to main: the vectors of a Cortex-M, the variables, the floating-point unit. */
#include <stdint.h>
#include <string.h>

extern uint32_t data_from[], data_begin[], data_end[], bss_begin[], bss_end[], stack_end[];

int main(void);
void reset(void);

static void halt(void)
{
    for (;;) {
    }
}

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the floating-point unit is on */
    __asm__ volatile("dsb\n isb" ::: "memory");
    memcpy(data_begin, data_from, (size_t)((char *)data_end - (char *)data_begin));
    memset(bss_begin, 0, (size_t)((char *)bss_end - (char *)bss_begin));
    (void)main();
    halt();
}

typedef union {
    void *stack;
    void (*handler)(void);
} Vector;

/* Stack, reset, and 14 exceptions; interrupts are not used. */
__attribute__((section(".vectors"), used)) static const Vector vectors[16] = {
    {.stack = stack_end}, {.handler = reset}, {.handler = halt}, {.handler = halt},
    {.handler = halt},    {.handler = halt},  {.handler = halt}, {.handler = halt},
    {.handler = halt},    {.handler = halt},  {.handler = halt}, {.handler = halt},
    {.handler = halt},    {.handler = halt},  {.handler = halt}, {.handler = halt},
};
