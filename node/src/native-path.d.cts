/** Where the native module of this platform is; throws where there is none. */
export declare function nativePath(): string;
