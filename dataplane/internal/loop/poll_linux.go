package loop

import (
	"syscall"
	"unsafe"
)

func pointer(events []syscall.EpollEvent) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(events)))
}
