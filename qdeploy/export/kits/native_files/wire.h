/* Photos in, logits out, over anything that carries bytes: standard input and output, or a serial line.
 *
 * In:  `?` asks who is there; a binary PPM (P6, 8 bits) is classified. Blanks before either are skipped.
 * Out: `qdeploy-native 1 SHA256 SIZE CLASSES any|exact`, where `exact` takes photos of the model's size alone; `logits
 *      INDEX BITS...`, the label's number and each logit's 32 bits in hexadecimal; or `error TEXT`. One line each.
 */
#ifndef QDEPLOY_WIRE_H
#define QDEPLOY_WIRE_H

#include <stdint.h>

#include "qdeploy_native.h"

/* What a program gives. The next byte, or -1 at the end: */
int wire_get(void);
/* Send a text: */
void wire_put(const char *text);
/* Memory for the pixels of a photo, uint8 [height][width][3]; NULL where there is none: */
uint8_t *wire_photo(int32_t width, int32_t height);
/* Make the model's input of that photo; NULL if there is too little memory: */
const uint8_t *wire_input(const uint8_t *photo, int32_t width, int32_t height);
/* Whether photos may be of any size. */
extern const int wire_any_size;

/* Answer until the input ends. 0, or 1 if it ended within a photo. */
int wire_serve(const qdeploy_native *net);

#endif
