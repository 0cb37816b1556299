//go:build !linux

package durable

import "os"

// Sync is f.Sync.
func Sync(f *os.File) error { return f.Sync() }

// SyncData is Sync of what is in a file, and of what is needed to find it, its length above all.
func SyncData(f *os.File) error { return f.Sync() }
