//go:build !linux

package netlab

import (
	"errors"
	"syscall"
)

var errLinux = errors.New("namespaces are a thing of Linux")

func attributes() *syscall.SysProcAttr { return nil }

// Up fails: there are no namespaces here.
func Up() error { return errLinux }

// Make fails: there are no namespaces here.
func Make(...Cut) (func() error, error) { return nil, errLinux }

// Disk fails: there are no namespaces here.
func Disk(string, int) error { return errLinux }
