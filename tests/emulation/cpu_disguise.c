/* A library for LD_PRELOAD that makes this computer's CPU look like an older one to a program, at native speed.

   ONNX Runtime and OpenVINO choose their kernels by the CPUID instruction. Where its answer lacks the flag of VNNI, for
   example, they compute as on a CPU without VNNI. QDEPLOY_TEST_CPU names the CPU; without it the library does nothing.
   Flags are only hidden: the real CPU must have all that remain.

   A CPUID instruction cannot be answered by software unless it traps, and there are two ways to make it trap:

   Faulting. Where processor and kernel offer it ("cpuid_fault" in /proc/cpuinfo), arch_prctl(ARCH_SET_CPUID, 0) makes
   every CPUID instruction of this thread, and of the threads that it starts, raise a general protection fault.

   Rewriting. Elsewhere, virtual machines for example, disguise.py copies the libraries in question and replaces their
   CPUID instructions (0f a2) by "int $0xa2" (cd a2), which is as long, which no compiler emits, and which raises the
   same fault because the kernel has no such call. Code that a program writes itself at run time, as
   qdeploy/core/cpuid.py does, is rewritten here when it is made executable by mprotect. Everything else still sees the
   real CPU.

   In both ways the kernel sends SIGSEGV to the thread, and the handler below puts the answer into its registers. A
   program that installs a SIGSEGV handler of its own replaces it; pytest needs "-p no:faulthandler".

   XGETBV is left alone. It tells which registers the system saves, and programs may call it only where CPUID has the
   flag OSXSAVE, which Nehalem has not. Elsewhere it may report registers that the disguised CPU lacks, which no program
   uses without the CPUID flag. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define LARGEST_REGION 65536 /* bytes; a just-in-time compiler's regions are larger */
#define LONGEST_PROLOGUE 64  /* bytes at the start of a region in which CPUID is looked for */

#define BIT(n) (1u << (n))

/* Leaf 1, ECX */
#define FMA BIT(12)
#define XSAVE BIT(26)
#define OSXSAVE BIT(27)
#define AVX BIT(28)
#define F16C BIT(29)
/* Leaf 7, EBX */
#define BMI1 BIT(3)
#define AVX2 BIT(5)
#define BMI2 BIT(8)
#define AVX512_IFMA BIT(21)
#define AVX512 (BIT(16) | BIT(17) | AVX512_IFMA | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)) /* F DQ ... BW VL */
/* Leaf 7, ECX */
#define AVX512_NEWER (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)) /* VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
#define GFNI_AND_VAES (BIT(8) | BIT(9) | BIT(10))
/* Leaf 7, EDX */
#define AMX (BIT(22) | BIT(24) | BIT(25))
#define AVX512_FP16 BIT(23)
#define AVX512_RARE (BIT(2) | BIT(3) | BIT(8)) /* 4VNNIW, 4FMAPS, VP2INTERSECT */
/* Leaf 7, sub-leaf 1, EAX */
#define AVX_VNNI BIT(4)
#define ALL (~0u)

/* The flags that each CPU lacks. */
struct cpu {
    const char *name;
    unsigned leaf_1_ecx, leaf_7_ebx, leaf_7_ecx, leaf_7_edx, leaf_7_1_eax;
};

static const struct cpu cpus[] = {
    /* SSE4.2 */
    {"nehalem", FMA | XSAVE | OSXSAVE | AVX | F16C, AVX512 | AVX2 | BMI1 | BMI2, AVX512_NEWER | GFNI_AND_VAES,
     AMX | AVX512_FP16 | AVX512_RARE, ALL},
    /* AVX */
    {"sandybridge", FMA | F16C, AVX512 | AVX2 | BMI1 | BMI2, AVX512_NEWER | GFNI_AND_VAES,
     AMX | AVX512_FP16 | AVX512_RARE, ALL},
    /* AVX2, as AMD's Zen 1 to 3 */
    {"haswell", 0, AVX512, AVX512_NEWER | GFNI_AND_VAES, AMX | AVX512_FP16 | AVX512_RARE, ALL},
    /* AVX512 without VNNI */
    {"skylake-x", 0, AVX512_IFMA, AVX512_NEWER | GFNI_AND_VAES, AMX | AVX512_FP16 | AVX512_RARE, ALL},
    /* AVX2 and AVX-VNNI */
    {"alderlake", 0, AVX512, AVX512_NEWER, AMX | AVX512_FP16 | AVX512_RARE, ~AVX_VNNI},
    /* AVX512 with VNNI, without AMX */
    {"icelake", 0, 0, 0, AMX | AVX512_FP16, ALL},
};

static const struct cpu *cpu;
static int faulting;
static struct sigaction before;

/* Answer a CPUID instruction with the real CPU's answer less what is hidden. */
static void answer(greg_t *registers)
{
    unsigned leaf = (unsigned)registers[REG_RAX], sub = (unsigned)registers[REG_RCX], a, b, c, d;

    if (faulting) {
        syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    }
    __cpuid_count(leaf, sub, a, b, c, d);
    if (faulting) {
        syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    }
    if (leaf == 1) {
        c &= ~cpu->leaf_1_ecx;
    } else if (leaf == 7 && sub == 0) {
        b &= ~cpu->leaf_7_ebx;
        c &= ~cpu->leaf_7_ecx;
        d &= ~cpu->leaf_7_edx;
    } else if (leaf == 7 && sub == 1) {
        a &= ~cpu->leaf_7_1_eax;
        b = c = d = 0; /* AVX-VNNI-INT8, AVX10 and their like */
    } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) {
        a = b = c = d = 0; /* AMX tiles, AMX multiplication, AVX10 */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)registers[REG_RIP];

    /* SI_KERNEL: a general protection fault, not an access to memory that is not there, so the code can be read. */
    if (info->si_code == SI_KERNEL && (code[0] == 0x0f || code[0] == 0xcd) && code[1] == 0xa2) {
        answer(registers);
        registers[REG_RIP] += 2;
    } else {
        sigaction(number, &before, NULL); /* a real fault: it happens again, and takes its usual course */
    }
}

/* Stand in for mprotect of the C library: a small region that becomes code has its CPUID instruction rewritten. */
int mprotect(void *address, size_t length, int protection)
{
    if (cpu && !faulting && (protection & PROT_EXEC) && length <= LARGEST_REGION &&
        syscall(SYS_mprotect, address, length, PROT_READ | PROT_WRITE) == 0) {
        unsigned char *code = address;
        size_t end = length < LONGEST_PROLOGUE ? length : LONGEST_PROLOGUE;

        for (size_t i = 0; i + 1 < end; i++) {
            if (code[i] == 0x0f && code[i + 1] == 0xa2) {
                code[i] = 0xcd;
            }
        }
    }
    return (int)syscall(SYS_mprotect, address, length, protection);
}

__attribute__((constructor(101))) static void start(void)
{
    const char *name = getenv("QDEPLOY_TEST_CPU");
    struct sigaction action;

    if (!name) {
        return;
    }
    for (size_t i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        if (strcmp(name, cpus[i].name) == 0) {
            cpu = &cpus[i];
        }
    }
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (!cpu || sigaction(SIGSEGV, &action, &before) != 0) {
        fprintf(stderr, "cpu_disguise: there is no CPU '%s'\n", name);
        _exit(3);
    }
    faulting = syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0;
}
