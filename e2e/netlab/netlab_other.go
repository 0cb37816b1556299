//go:build !linux

package netlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
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

// Fabric cannot be made here, and so no method of it is ever called.
type Fabric struct{}

// Host is never made here.
type Host struct {
	Name    string
	Address netip.Addr
}

// NewFabric fails: there are no namespaces here.
func NewFabric() (*Fabric, error) { return nil, errors.Join(ErrMissing, errLinux) }

func (*Fabric) Host(string, netip.Addr, string) (*Host, error)                { return nil, errLinux }
func (*Fabric) Start(*Host, *exec.Cmd) error                                  { return errLinux }
func (*Fabric) Dial(context.Context, *Host, string, string) (net.Conn, error) { return nil, errLinux }
func (*Fabric) Listen(*Host, string) (net.Listener, error)                    { return nil, errLinux }
func (*Fabric) Rules(string) error                                            { return errLinux }
func (*Fabric) Fault(...string) (func() error, error)                         { return nil, errLinux }
func (*Fabric) Counters() (map[string]uint64, error)                          { return nil, errLinux }
func (*Fabric) ResetCounters() (map[string]uint64, error)                     { return nil, errLinux }
func (*Fabric) Delay(...Late) (func() error, error)                           { return nil, errLinux }
func (*Fabric) Flush() error                                                  { return errLinux }
func (*Fabric) Close() error                                                  { return nil }
