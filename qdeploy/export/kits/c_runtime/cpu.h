#ifndef QDEPLOY_CPU_H
#define QDEPLOY_CPU_H

/* 1 if this CPU is an x86 on which ONNX Runtime sums pairs of 8-bit products in 16 bits, which overflow in silence;
 * 0 if it sums them in 32 bits (VNNI or AMX) or is no x86. Where CPUID cannot be asked, an x86 counts as one of them. */
int cpu_saturates(void);

#endif
