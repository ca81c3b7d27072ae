/* What differs from board to board: a serial line. */
#ifndef BOARD_H
#define BOARD_H

void board_begin(void);
int board_get(void); /* waits for a byte */
void board_put(char c);

#endif
