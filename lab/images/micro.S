# Micro guest: one boot sector in real mode, 2 MB of RAM, up in a fifth of a second.
#
# Prints "READY micro" and then, about twice a second, "BOOT <id> COUNT <n>" on COM1. <id> is made once at boot (wall
# clock and time stamp counter), <n> counts the lines and lives in RAM only: the same id and a growing number prove that
# memory was carried over. Every second line goes to disk sector 1 as well, so that whoever looks at the disk sees which
# boot wrote last. Powers off on the ACPI power button.
#
# Build: as --32 -o micro.o micro.S && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o micro.bin micro.o

        .set    LINE, 0x7e00            # the line, zero padded to one sector
        .set    BIOS_TICKS, 0x46c       # 18.2 a second
        .set    PM1_STATUS, 0x600       # where SeaBIOS puts the power management ports, on pc and q35
        .set    PM1_ENABLE, 0x602
        .set    PM1_CONTROL, 0x604
        .set    POWER_BUTTON, 0x100
        .set    TICKS_PER_LINE, 8

        .code16
        .globl  _start
_start: cli
        ljmp    $0, $flat
flat:   xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        cld
        sti
        mov     %dl, drive
        mov     $LINE, %di
        mov     $512, %cx
        rep     stosb
        mov     $2, %ah                 # hours, minutes, seconds of the clock in BCD
        int     $0x1a
        mov     %cx, id + 6
        mov     %dx, id + 4
        rdtsc                           # counts from power on: alone it might repeat
        mov     %eax, id
        mov     $PM1_ENABLE, %dx        # or the button would not set its status bit
        mov     $POWER_BUTTON, %ax
        out     %ax, %dx
        mov     $ready, %si
        call    print

main:   hlt
        mov     $PM1_STATUS, %dx
        in      %dx, %ax
        test    $POWER_BUTTON, %ax
        jnz     off
        mov     BIOS_TICKS, %eax
        sub     last, %eax
        cmp     $TICKS_PER_LINE, %eax
        jb      main
        add     %eax, last
        incl    count
        call    compose
        mov     $LINE, %si
        call    print
        testb   $1, count
        jnz     main
        mov     $0x0301, %ax            # write one sector: cylinder 0, head 0, sector 2 is block 1
        mov     $LINE, %bx
        mov     $2, %cx
        xor     %dh, %dh
        mov     drive, %dl
        int     $0x13
        jmp     main

off:    mov     $bye, %si
        call    print
        mov     $PM1_CONTROL, %dx
        mov     $0x2000, %ax            # sleep enable, type 0: soft off
        out     %ax, %dx
stay:   hlt
        jmp     stay

compose: mov    $LINE, %di
        mov     $boot, %si
        call    append
        mov     $id + 7, %si
        mov     $8, %cx
byte:   mov     (%si), %al
        dec     %si
        push    %ax
        shr     $4, %al
        call    digit
        pop     %ax
        and     $15, %al
        call    digit
        loop    byte
        mov     $counts, %si
        call    append
        mov     count, %eax
        mov     $10, %ebx
        xor     %cx, %cx
divide: xor     %edx, %edx
        div     %ebx
        push    %dx
        inc     %cx
        test    %eax, %eax
        jnz     divide
figure: pop     %ax
        call    digit
        loop    figure
        mov     $10, %al                # newline, then the zero that ends the text
        stosb
        movb    $0, (%di)
        ret

digit:  cmp     $10, %al
        jb      1f
        add     $39, %al                # a to f
1:      add     $48, %al
        stosb
        ret

append: lodsb
        test    %al, %al
        jz      1f
        stosb
        jmp     append
1:      ret

print:  lodsb
        test    %al, %al
        jz      1f
        call    putc
        jmp     print
1:      ret

putc:   push    %ax
        mov     $0x3fd, %dx
2:      in      %dx, %al
        test    $0x20, %al
        jz      2b
        pop     %ax
        mov     $0x3f8, %dx
        out     %al, %dx
        ret

ready:  .asciz  "READY micro\n"
boot:   .asciz  "BOOT "
counts: .asciz  " COUNT "
bye:    .asciz  "OFF\n"
drive:  .byte   0
id:     .quad   0
count:  .long   0
last:   .long   0
        .org    510
        .word   0xaa55
