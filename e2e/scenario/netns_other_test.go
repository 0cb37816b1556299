//go:build !linux

package scenario_test

import (
	"errors"
	"testing"
)

var errNoNamespace = errors.New("network namespaces are a thing of Linux")

func reexecInNamespace(*testing.T) error { return errNoNamespace }
func loopbackUp() error                  { return errNoNamespace }
func cutUDP() error                      { return errNoNamespace }
func healUDP() error                     { return errNoNamespace }
func udpWorks() error                    { return errNoNamespace }
