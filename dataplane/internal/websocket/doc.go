// Package websocket owns what passes on a WebSocket (RFC 6455) between a client and an upstream: the handshake's fields, and
// the relay that reads every frame, holds both sides to the protocol and writes each frame anew.
//
// It never opens or closes a connection, decides who may, or knows HTTP: whoever joins two legs does. It takes no extension and
// keeps no message: a frame goes on in pieces as it comes, so memory is two small buffers a connection whatever the messages'
// size, and who takes nothing is sent nothing. Messages cost no allocation. Nothing survives a crash. Join may be called any
// number of times at once; a Meter is asked by two goroutines of each.
package websocket
