#include "cpu.h"

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)

#include <cpuid.h>

#define BIT(n) (1u << (n))
#define AVX_STATE 0x6u      /* of XCR0: registers that the operating system saves */
#define AVX512_STATE 0xe6u
#define AMX_STATE 0x60000u

static unsigned saved_state(void)
{
    unsigned low, high;

    __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0)); /* xgetbv */
    return low;
}

int cpu_saturates(void)
{
    unsigned eax, ebx, ecx, edx, most, saved;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & BIT(27))) { /* OSXSAVE */
        return 1;
    }
    saved = saved_state();
    if (!__get_cpuid_count(7, 0, &most, &ebx, &ecx, &edx)) {
        return 1;
    }
    if (((ecx & BIT(11)) && (saved & AVX512_STATE) == AVX512_STATE) || /* AVX512-VNNI */
        ((edx & BIT(25)) && (saved & AMX_STATE) == AMX_STATE)) {       /* AMX-INT8 */
        return 0;
    }
    return !(most >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & BIT(4)) && /* AVX-VNNI */
             (saved & AVX_STATE) == AVX_STATE);
}

#else

int cpu_saturates(void)
{
#if defined(_M_X64) || defined(_M_IX86) || defined(__x86_64__) || defined(__i386__)
    return 1;
#else
    return 0;
#endif
}

#endif
