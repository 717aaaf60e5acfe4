/* A 32-bit process without a C library: `cc -m32 -nostdlib -static -fno-pic`, no 32-bit libraries needed. */
static int
call(int number, int a, const void *b, int c)
{
    int result;

    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

void
_start(void)
{
    enum { EXIT = 1, READ = 3, WRITE = 4 };
    char byte;

    call(WRITE, 1, "ready\n", 6);
    while (call(READ, 0, &byte, 1) == 1) {
        if (byte == '\n') {
            call(WRITE, 1, "0\n", 2);
        }
    }
    call(EXIT, 0, 0, 0);
}
