//go:build !linux

package main

import "syscall"

// Only Linux ends children with their parent; elsewhere a killed sandbox leaves them to be stopped by hand.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
