//go:build !linux

package spool

import "os"

func reserveBlocks(f *os.File, size int64) error { return writeZeros(f, size) }
func syncData(f *os.File) error                  { return f.Sync() }
func populate([]byte)                            {}
